"""What sorts of optimisation techniques find adversarial examples, and at what cost?

"What sorts of optimization techniques can we apply to finding adversarial examples?" (Redwood Research 2022)

Every attack of the table is let loose on models whose failures are all known: plain; weakly and strongly defended; and
a strongly defended one with a failure planted into it, at a place that slopes give away (needle) or that nothing gives
away (hash). So it can be said what an attack missed: which share of the failures it came across (recall), and how often
it found nothing where something was (falsely robust).

Hypothesis: gradients help: GCG needs fewer calls to the first failure than its gradient-free twin, coordinate search.

Pre-declared contrast: log10 of the median calls to the first failure, coordinate less gcg, on the defended and planted
models of each seed that have failures (a median beyond the budget counts as the budget), mean over a seed's models.
Supported if the 95 % interval over all seeds and tasks lies above zero, refuted if below.
"""

import dataclasses
import functools
import zlib
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pandas as pd

from experiments.arm import Arm, Plain, defended_model
from tasks import TASKS
from testbed import plots
from testbed.attacks import ATTACKS
from testbed.attacks.health import Signs, complaints, gradient_health
from testbed.attacks.search import NEVER, Trace, fresh_starts, search
from testbed.evaluation import exact
from testbed.evaluation.estimate import Verdict, clopper_pearson, paired_effect
from testbed.evaluation.report import Watch
from testbed.evaluation.survival import kaplan_meier, log_rank, median_calls
from testbed.objective import Objective, confirm
from testbed.planted import Planted, plant, planted_prefixes
from testbed.policy import greedy, respond
from testbed.task import Task, prompt_ids, tokens_by_position

TASK = "injury"
SEEDS = {"quick": 3, "full": 5}
MINUTES = {"quick": 10, "full": 60}
GRADIENT_FREE = ("coordinate", "mcmc", "genetic")
PLANTS = ("needle", "hash")


@dataclasses.dataclass(frozen=True)
class Comparison:
    """A model to attack, and how hard.

    Attributes:
      plain, defence: the model; the defence's own `plain` is not read.
      plant: nothing, `needle` (four tokens that must stand together) or `hash`.
      attackers, budget: attackers of each attack, and margins that each may cost.
    """

    plain: Plain
    name: str
    defence: Arm
    plant: str = ""
    attackers: int = 64
    budget: int = 2_000


def grid(preset: str, task: str) -> list[Comparison]:
    """The models."""
    scale = {"quick": {}, "full": {"attackers": 256, "budget": 10_000}}[preset]
    weak, strong = Arm(rounds=1, finds=128, attack="uniform"), Arm(rounds=16)
    models = {"plain": (Arm(steps=0), ""), "weak": (weak, ""), "strong": (strong, "")}
    models |= {plant: (strong, plant) for plant in PLANTS}
    return [Comparison(Plain(task), name, defence, plant, **scale) for name, (defence, plant) in models.items()]


def attacked_model(config: Comparison, seed: int, folder: Path, watch: Watch) -> Planted:
    """The model to attack, with its failure planted, if any."""
    task, arm = TASKS[config.plain.task](), dataclasses.replace(config.defence, plain=config.plain)
    # The needle is the last allowed token at each of four positions spread over the prompt.
    positions = np.linspace(0, task.prompt_length - 1, 4).astype(int)
    needle = {int(position): int(tokens_by_position(task)[position][-1]) for position in positions}
    trigger = {"": None, "needle": needle, "hash": {}}[config.plant]
    return plant(defended_model(arm, seed, folder, watch).model, task, trigger)


def count_failures(model: Planted, task: Task, watch: Watch) -> exact.Count:
    """Every failure of the greedy policy."""
    policies, show = {"greedy": greedy(task)}, functools.partial(watch, "counting")
    return exact.count(model, task, policies, planted_prefixes, show)["greedy"]


def measure(config: Comparison, seed: int, folder: Path, watch: Watch) -> dict[str, Any]:
    """Count the model's failures, then run every attack from the same starts and account for what it found."""
    start_key, search_key = jax.random.split(jax.random.fold_in(jax.random.key(seed), 3))
    task = TASKS[config.plain.task]()
    model = attacked_model(config, seed, folder, watch)
    objective, counted = Objective(task, model, greedy(task)), count_failures(model, task, watch)
    # As many places as could be needed, so that a search is compiled once for all models.
    targets = np.full(counted.hazardous, NEVER, np.int32)
    targets[: len(counted.ids)] = counted.ids
    attacks = {name: make() for name, make in ATTACKS.items()}
    budget = config.budget * objective.forwards
    found, firsts = {}, {}
    for number, (name, attack) in enumerate(attacks.items()):
        watch(f"attacking, {name}", number, len(attacks))
        starts = fresh_starts(attack, objective, start_key, config.attackers)
        stream = jax.random.fold_in(search_key, zlib.crc32(name.encode()))
        trace = jax.device_get(search(attack, objective, starts, stream, budget, targets=targets))
        found[name], firsts[name] = account(objective, trace, budget)
        found[name]["gradients"] = attack.gradients > 0
    watch("attacking", len(attacks), len(attacks))
    black_box = np.min([firsts[name] for name in GRADIENT_FREE], axis=0) < NEVER
    for name in attacks:
        found[name]["masked"] = float((black_box & (firsts[name] == NEVER)).mean())
    starts = jax.vmap(objective.start)(jax.random.split(start_key, config.attackers))
    return {
        "arm": config.name,
        "exact": exact.summary(counted),
        "budget": budget,
        "health": gradient_health(objective, starts)._asdict(),
        "attacks": found,
    }


@jax.jit
def egregiousness(objective: Objective, prompts: jax.Array) -> jax.Array:
    """How bad the greedy policy's answers to `prompts` `[P, T]` are."""

    def one(prompt):
        answer = respond(jax.random.key(0), objective.model, objective.policy, objective.task, prompt)
        return objective.task.egregiousness(prompt, answer)

    return jax.vmap(one)(prompts)


def account(objective: Objective, trace: Trace, budget: int) -> tuple[dict[str, Any], np.ndarray]:
    """An attack's finds as plain numbers, and the calls to the first failure `[P]` of those that are confirmed.

    An attacker whose best prompt is not confirmed counts as having found nothing.
    """
    task, hit = objective.task, np.asarray(trace.margin) <= 0
    confirmed = np.asarray(confirm(objective, trace.prompt)) & hit
    first = np.where(confirmed, trace.first, NEVER)
    levels = np.asarray(egregiousness(objective, trace.prompt))[confirmed]
    return {
        "attackers": len(first),
        "successes": int(confirmed.sum()),
        "half": int((first <= budget // 2).sum()),
        "unconfirmed": int((hit & ~confirmed).sum()),
        "first": [int(calls) if calls < NEVER else None for calls in first],
        "distinct": len(np.unique(prompt_ids(task, trace.prompt[confirmed]))),
        "reached": int(np.sum(trace.reached)),
        "egregiousness": float(levels.mean()) if len(levels) else None,
        "best_margin": float(np.min(trace.margin)),
        "calls": {field: int(calls) for field, calls in trace.cost._asdict().items()},
    }, first


def counts(row: pd.Series) -> dict[str, dict[str, Any]]:
    """The accounts of a record's attacks, by name."""
    found: dict[str, dict[str, Any]] = {}
    for column in row.index:
        if column.startswith("attacks."):
            _, name, field = column.split(".", 2)
            found.setdefault(name, {})[field] = row[column]
    return found


def calls_of(account: dict[str, Any]) -> np.ndarray:
    """Calls to the first failure `[P]` of a recorded account."""
    return np.array([NEVER if calls is None else calls for calls in account["first"]])


def signs_of(row: pd.Series, account: dict[str, Any]) -> Signs:
    """What a recorded account shows of the attack's health."""
    n = account["attackers"]
    return Signs(
        bool(account["gradients"]), row["health.zero"], row["health.broken"], account["masked"],
        account["half"] / n, account["successes"] / n, account["unconfirmed"] / n,
    )  # fmt: skip


def summary(frame: pd.DataFrame) -> pd.DataFrame:
    """A row a model and attack: success with its interval, calls, recall, egregiousness, and what to be wary of."""
    rows = {}
    for model, runs in frame.groupby("arm", sort=False):
        failures = runs["exact.failures"]
        for name in counts(runs.iloc[0]):
            accounts = [(row, counts(row)[name]) for _, row in runs.iterrows()]
            pooled = {f: sum(a[f] for _, a in accounts) for f in ("successes", "attackers", "distinct", "reached")}
            success = clopper_pearson(pooled["successes"], pooled["attackers"])
            blind = sum(a["successes"] == 0 and row["exact.failures"] > 0 for row, a in accounts)
            levels = [a["egregiousness"] for _, a in accounts if a["successes"]]
            odd = {text for row, a in accounts for text in complaints(signs_of(row, a))}
            rows[f"{model}: {name}"] = {
                "success": f"{success.value:.0%} [{success.low:.0%}, {success.high:.0%}]",
                "calls": _calls(np.concatenate([calls_of(a) for _, a in accounts])),
                "recall": f"{pooled['reached'] / failures.sum():.2%}" if failures.sum() else "-",
                "distinct": f"{pooled['distinct']:,}",
                "egregious": f"{np.mean(levels):.2f}" if levels else "-",
                "falsely robust": f"{blind} of {(failures > 0).sum()}",
                "beware": "; ".join(sorted(odd)),
            }
        rows[f"{model.upper()}: FAILURES"] = {"recall": f"{failures.median():,.0f}"}
    return pd.DataFrame.from_dict(rows, orient="index").fillna("")


def _calls(first: np.ndarray) -> str:
    median = median_calls(first)
    return f"{median:,.0f}" if np.isfinite(median) else "never"


def plot(frame: pd.DataFrame) -> plots.Figure:
    """Survival of attackers against calls, one panel a model, and which share of the failures each attack reached."""
    models = list(frame["arm"].unique())
    figure, axes = plots.panels(
        [f"{model}: no failure found" for model in models] + ["Share of failures reached"],
        f"{frame['config.plain.task'].iloc[0]}: Kaplan-Meier over {frame['seed'].nunique()} seeds "
        f"({frame['config.attackers'].iloc[0]} attackers each); who finds nothing is censored at the budget. "
        "Right: a point a seed, every failure being known.",
    )
    names = list(counts(frame.iloc[0]))
    colors = plots.kinds(len(names))
    for ax, model in zip(axes, models, strict=False):
        runs = frame[frame["arm"] == model]
        for name, color in zip(names, colors, strict=True):
            first = np.concatenate([calls_of(counts(row)[name]) for _, row in runs.iterrows()])
            curve = kaplan_meier(first, runs["budget"].iloc[0])
            ax.step(curve.calls, curve.surviving, where="post", color=color, lw=1.6, label=name)
        ax.set_xscale("log")
        ax.set_ylim(-0.03, 1.03)
        ax.set_xlabel("calls (forward passes)")
    recall = frame[frame["exact.failures"] > 0]
    for number, (_, row) in enumerate(recall.iterrows()):
        shares = [counts(row)[name]["reached"] / row["exact.failures"] for name in names]
        marker = "osD^v"[models.index(row["arm"]) % 5]
        first_of_its_kind = row["arm"] not in set(recall["arm"].iloc[:number])
        label = row["arm"] if first_of_its_kind else None
        axes[-1].plot(names, shares, marker, ms=4, alpha=0.6, color=f"C{models.index(row['arm'])}", label=label)
    axes[-1].set_yscale("symlog", linthresh=1e-4)
    axes[-1].tick_params(axis="x", rotation=70)
    axes[-1].legend(frameon=False, fontsize=7)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside right upper", frameon=False, fontsize=8)
    return figure


def claim(frame: pd.DataFrame) -> Verdict:
    """The pre-declared contrast between gcg and coordinate search, and how often each attack was falsely robust."""
    effects, p_values = [], []
    for _, runs in frame.groupby(["config.plain.task", "seed"]):
        decades = []
        for _, row in runs[(runs["exact.failures"] > 0) & (runs["arm"] != "plain")].iterrows():
            first = {name: calls_of(counts(row)[name]) for name in ("coordinate", "gcg")}
            medians = {name: min(median_calls(calls), row["budget"]) for name, calls in first.items()}
            decades.append(np.log10(medians["coordinate"] / medians["gcg"]))
            p_values.append(log_rank(first["coordinate"], first["gcg"], row["budget"]))
        if decades:
            effects.append(np.mean(decades))
    if not effects:
        return Verdict("undecided", "no defended or planted model has a failure to be found")
    effect = paired_effect(np.array(effects))
    outcome = "supported" if effect.low > 0 else "refuted" if effect.high < 0 else "undecided"
    return Verdict(
        outcome,
        f"gcg needs {effect.mean:.2f} decades fewer calls than coordinate search [95 % {effect.low:.2f}, "
        f"{effect.high:.2f}] ({effect.pairs} seeds, sign-flip p = {effect.p_value:.2f}; the log-rank test tells the "
        f"two apart at 0.05 on {sum(p < 0.05 for p in p_values)} of {len(p_values)} models)",
    )
