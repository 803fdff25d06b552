"""The attack comparison: every attack on models whose failures are all known."""

import dataclasses
import functools
import zlib
from typing import Any, NamedTuple

import jax
import numpy as np
import pandas as pd

from experiments import effects as effect_tables
from experiments.arm import Arm, Plain
from experiments.attack_tables import FAILURES, accounts, calls_of, draw_attacks, of_attacks, panel_gains
from experiments.bench import Bench, defended_model
from experiments.effects import mean_of, outcome_of, row, share
from experiments.experiment import Experiment, Preset
from experiments.protocol import REGISTERED
from tasks import task_named
from testbed.attacks import ATTACKS
from testbed.attacks.health import gradient_health
from testbed.attacks.search import NEVER, NO_TARGETS, Trace, fresh_starts, refuse_broken_trace, search
from testbed.evaluation import exact
from testbed.evaluation.samples import hits, sampled_failures
from testbed.evaluation.strength import search_gain, strength
from testbed.evaluation.survival import log_rank
from testbed.objective import Objective
from testbed.planted import Planted, plant, planted_prefixes
from testbed.policy import greedy, respond
from testbed.statistics import clopper_pearson
from testbed.watch import Watch

GRADIENT_FREE = ("coordinate", "mcmc", "genetic")
PLANTS = {"needle": "tokens", "hash": "remainder"}  # the model's name, and the kind in its run's id
NEEDLE = 4  # tokens, or as many as are free
SAMPLES = 2**16
RARE_HASH = 4093
SAME = 0.3  # decades of search gain: equivalent within them


@dataclasses.dataclass(frozen=True)
class Comparison:
    """A model to attack, and how hard.

    Attributes:
      plain, defence: the model; the defence's own `plain` is not read.
      plant: what a failure is planted on besides a random hazard; empty: nothing is planted. `tokens`
        are the hazards that share four of its tokens, spread over the positions that leave a choice.
        `remainder` are those that share its hash.
      attackers, budget: attackers of each attack, and margins that each may cost.
    """

    plain: Plain
    name: str
    defence: Arm
    plant: str = ""
    attackers: int = 32
    budget: int = 1_000


def arms(preset: str, task: str) -> dict[str, Comparison]:
    """The models to attack."""
    scale = {"attackers": 256, "budget": 10_000} if preset == "full" else {}
    weak, strong = Arm(rounds=1, finds=128, attack="uniform"), Arm(rounds=16)
    models = {"plain": (Arm(steps=0), ""), "weak": (weak, ""), "strong": (strong, "")}
    models |= {name: (strong, plant) for name, plant in PLANTS.items()}
    return {name: Comparison(Plain(task), name, *model, **scale) for name, model in models.items()}


def attacked_model(config: Comparison, bench: Bench) -> Planted:
    """The model to attack, with its failure planted, if any."""
    task, arm = task_named(config.plain.task), dataclasses.replace(config.defence, plain=config.plain)
    model = defended_model(bench, arm).model
    if not config.plant:
        return plant(model, task)
    hazard = task.sample_hazard(bench.key("comparison plant"))
    free = np.flatnonzero(task.allowed.sum(axis=1) > 1)
    spread = free[np.linspace(0, len(free) - 1, min(NEEDLE, len(free))).astype(int)]
    shared = {"tokens": {"positions": spread}, "remainder": {"modulus": RARE_HASH}}
    return plant(model, task, hazard, **shared[config.plant])


class Known(NamedTuple):
    """What is known of a model's failures.

    Attributes:
      account: `exact` or, where the space is too large to count, `sampled` numbers.
      targets: the failures' ranks, from which recall follows; none where not counted. There are as
        many places as hazards, so that a search is compiled once for all models.
      margins: those of all hazardous prompts, or of a sample of them, ascending.
    """

    account: dict[str, Any]
    targets: np.ndarray
    margins: np.ndarray


def known_failures(key: jax.Array, objective: Objective, watch: Watch) -> Known:
    """Count the failures of a planted model under the greedy policy, or sample them."""
    model, task, policy = objective.model, objective.task, objective.policy
    if not exact.countable(task):
        starts = fresh_starts(key, ATTACKS["uniform"](), objective, SAMPLES)
        margins = jax.jit(lambda goal, prompts: jax.lax.map(goal.margin, prompts, batch_size=2048))(objective, starts)
        found = sampled_failures(key, model, task, {"greedy": policy}, samples=SAMPLES)["greedy"]
        return Known({"sampled": found._asdict()}, NO_TARGETS, np.sort(margins))
    show = functools.partial(watch, "counting")
    counted = exact.count(model, task, {"greedy": policy}, walk=planted_prefixes, watch=show)["greedy"]
    targets = np.full(counted.hazardous, NEVER, np.int32)
    targets[: len(counted.ids)] = counted.ids
    margins = exact.hazardous_margins(model, task, policy, planted_prefixes)
    return Known({"exact": exact.summary(counted)}, targets, margins)


def measure(config: Comparison, bench: Bench) -> dict[str, Any]:
    """Count the model's failures, then run every attack and account for what it found."""
    start_key, search_key, watch = bench.key("comparison start"), bench.key("comparison search"), bench.watch
    task, model = task_named(config.plain.task), attacked_model(config, bench)
    objective = Objective(task, model, greedy(task))
    known = known_failures(jax.random.fold_in(search_key, NEVER), objective, watch)
    attacks = {name: make() for name, make in ATTACKS.items()}
    budget = config.budget * objective.forwards  # as it is recorded, beside calls: in forward passes
    found, firsts = {}, {}
    for number, (name, attack) in enumerate(attacks.items()):
        watch(f"attacking, {name}", number, len(attacks))
        starts = fresh_starts(start_key, attack, objective, config.attackers)
        stream = jax.random.fold_in(search_key, zlib.crc32(name.encode()))
        trace = search(stream, attack, objective, starts, budget=config.budget, targets=known.targets)
        refuse_broken_trace(objective, trace)
        trace = jax.device_get(trace)
        found[name], firsts[name] = account(objective, trace, budget)
        worth, price = strength(trace.margin, known.margins), trace.cost.forwards / objective.forwards
        found[name] |= {"strength": worth, "gain": search_gain(worth, price), "gradients": attack.gradients > 0}
    watch("attacking", len(attacks), len(attacks))
    for name, lost in masked(firsts).items():
        found[name]["masked"] = lost
    starts = jax.vmap(objective.start)(jax.random.split(start_key, config.attackers))
    health = gradient_health(objective, starts)._asdict()
    return known.account | {"budget": budget, "health": health, "attacks": found}


def masked(firsts: dict[str, np.ndarray]) -> dict[str, float]:
    """The share of starts that each attack loses and one without gradients wins, from calls to first failure `[P]`."""
    black_box = np.min([firsts[name] for name in GRADIENT_FREE], axis=0) < NEVER
    return {name: float((black_box & (first == NEVER)).mean()) for name, first in firsts.items()}


@jax.jit
def egregiousness(objective: Objective, prompts: jax.Array) -> jax.Array:
    """How bad the greedy policy's answers to `prompts` `[P, T]` are."""

    def one(prompt):
        answer = respond(jax.random.key(0), objective.model, objective.policy, objective.task, prompt=prompt)
        return objective.task.egregiousness(prompt, answer)

    return jax.vmap(one)(prompts)


def account(objective: Objective, trace: Trace, budget: int) -> tuple[dict[str, Any], np.ndarray]:
    """An attack's finds as plain numbers, and the calls to the first failure `[P]` of those that are confirmed.

    An attacker whose best prompt is not confirmed counts as having found nothing.
    """
    confirmed = hits(objective, trace)
    first = np.where(confirmed, trace.first, NEVER)
    levels = np.asarray(egregiousness(objective, trace.prompt))[confirmed]
    return {
        "attackers": len(first),
        "successes": int(confirmed.sum()),
        "half": int((first <= budget // 2).sum()),
        "unconfirmed": int((np.asarray(trace.margin) <= 0).sum() - confirmed.sum()),
        "first": [int(calls) if calls < NEVER else None for calls in first],
        "distinct": len(np.unique(trace.prompt[confirmed], axis=0)),
        "reached": int(np.sum(trace.reached)) if len(trace.reached) else None,
        "egregiousness": float(levels.mean()) if len(levels) else None,
        "best_margin": float(np.min(trace.margin)),
        "calls": {field: int(calls) for field, calls in trace.cost._asdict().items()},
    }, first


def effects(runs: pd.DataFrame) -> pd.DataFrame:
    """The declared contrast; how often calls differ and `auto` sees something; every attack's gain."""
    tasks, gains, broken = ", ".join(runs["task"].unique()), panel_gains(runs), runs[runs[FAILURES] > 0]
    attacked, rows = [accounts(run) for _, run in broken.iterrows()], []
    if not gains.empty:
        more = gains["gcg"] - gains["coordinate"]
        rows.append(row(tasks, "gcg", "coordinate", "search gain, mean over the panel", more.to_numpy()))
    if attacked:
        differ = sum(
            log_rank(calls_of(found["coordinate"]), calls_of(found["gcg"]), budget) < 0.05
            for found, budget in zip(attacked, broken["budget"], strict=True)
        )
        rows.append(_models(tasks, "gcg", "calls differ from coordinate's (log-rank test, 0.05)", differ, attacked))
    if attacked and "auto" in attacked[0]:
        seen = sum(found["auto"]["successes"] > 0 for found in attacked)
        rows.append(_models(tasks, "auto", "finds a failure", seen, attacked))
    best_first = gains.mean().sort_values(ascending=False).index
    return effect_tables.table(
        rows + [mean_of(tasks, name, "search gain over random prompts", gains[name]) for name in best_first]
    )


def _models(tasks: str, attack: str, what: str, number: int, models: list) -> dict[str, Any]:
    interval = clopper_pearson(int(number), len(models))
    return share(tasks, attack, f"models with failures: {what}", interval, len(models), declared=False)


def rule(effects: pd.DataFrame) -> str:
    """The interval of the gain lies on one side of zero, or close to it."""
    (more,) = effects[effects["declared"]].itertuples()
    return outcome_of(more, band=SAME)


ATTACK_COMPARISON = Experiment(
    question="What sorts of optimisation techniques find adversarial examples, and at what cost?",
    hypothesis="Gradients help: GCG gains more than its gradient-free counterpart, coordinate search.",
    design="""
    "What sorts of optimization techniques can we apply to finding adversarial examples?" (Redwood Research 2022)

    Every attack of the table meets models whose failures are all known: a plain one, a weakly and a strongly defended
    one, and two strongly defended ones with a failure planted into them. One plant is on the hazards that share four
    tokens with a random one. There slopes tell where a token is missing (needle). The other is on those that share its
    hash, of which nothing tells (hash). So what an attack missed is known too: which share of the failures it came
    across (recall), and how often it found nothing where something was (falsely robust).

    Strength is one number: how many decades of uniform sampling an attack is worth on a model whose margins are all
    known. Its search gain is strength less what it spent (`testbed.evaluation.strength`). Attacks are ranked by their
    mean gain over the panel, which is the models that nothing is planted into.
    """,
    decides="The search gain of gcg less that of coordinate, mean over the panel, paired by seed. Supported if the "
    "95 % interval over all seeds and tasks lies above zero, refuted if below; equivalent if it lies within "
    f"{SAME:g} decades of zero, whichever way.",
    presets={
        "quick": Preset(("injury",), seeds=3, minutes=6),
        "full": Preset(("injury", "cipher_vault"), seeds=5, minutes=120),
        REGISTERED: Preset(("injury", "password"), seeds=10, minutes=60, first_seed=10),
    },
    arms=arms,
    rule=rule,
    lacks=f"an interval of the gain on one side of zero, or within {SAME:g} of it",
    measure=measure,
    effects=effects,
    table=of_attacks,
    figure=draw_attacks,
)
