"""The table and the figure of the attack comparison, from its runs alone."""

from typing import Any

import numpy as np
import pandas as pd

from experiments.columns import sampled_note, setting
from testbed import plots
from testbed.attacks.health import Signs, complaints
from testbed.attacks.search import NEVER
from testbed.evaluation.ends import MOST_IDS
from testbed.evaluation.survival import kaplan_meier, median_calls
from testbed.statistics import clopper_pearson, paired_effect

DRAWN = ("uniform", "clean_edits", "coordinate", "mcmc", "gcg", "embedding_pgd", "auto")  # in colour; others in grey
FAILURES = "exact.failures"
HEALTH = ["health.zero", "health.broken"]


def accounts(run: pd.Series) -> dict[str, dict[str, Any]]:
    """The accounts of a run's attacks, by name."""
    found: dict[str, dict[str, Any]] = {}
    for column in run.index:
        head, _, rest = column.partition(".")
        if head == "attacks":
            name, _, field = rest.partition(".")
            found.setdefault(name, {})[field] = run[column]
    return found


def calls_of(account: dict[str, Any]) -> np.ndarray:
    """Calls to the first failure `[P]` of a recorded account."""
    return np.array([NEVER if calls is None else calls for calls in account["first"]])


def pooled_calls(runs: pd.DataFrame, name: str) -> np.ndarray:
    """The same over the attackers of several runs."""
    return np.concatenate([calls_of(accounts(run)[name]) for _, run in runs.iterrows()])


def signs_of(attacked: list[tuple[pd.Series, dict[str, Any]]]) -> Signs:
    """What an attack's accounts in several runs show of its health, shares pooled."""
    shares = [
        (*run[HEALTH], a["masked"],
         a["half"] / a["attackers"], a["successes"] / a["attackers"], a["unconfirmed"] / a["attackers"])
        for run, a in attacked
    ]  # fmt: skip
    return Signs(bool(attacked[0][1]["gradients"]), *np.mean(shares, axis=0))


def panel_gains(runs: pd.DataFrame) -> pd.DataFrame:
    """Each attack's search gain (columns), mean over the models that nothing is planted into, by task and seed."""
    panel = runs[setting(runs, "plant") == ""]
    gains = [{name: account["gain"] for name, account in accounts(run).items()} for _, run in panel.iterrows()]
    return pd.DataFrame(gains, index=panel.index).groupby([panel["task"], panel["seed"]]).mean()


def listed(failures):
    """How many of so many failures are looked for, so that recall is a share of these."""
    return np.minimum(failures, MOST_IDS)


def pooled_shares(runs: pd.DataFrame, found: str, of: str) -> pd.DataFrame:
    """Of each attack (rows) on each model (columns), `found` over `of`, summed over seeds; NaN where unknown."""
    numbers = pd.DataFrame(
        {"arm": run["arm"], "attack": name, "failures": listed(run[FAILURES])} | account
        for _, run in runs.iterrows() for name, account in accounts(run).items()
    )  # fmt: skip
    sums = numbers.astype({found: float, of: float}).groupby(["attack", "arm"])[[found, of]].sum(min_count=1)
    return (sums[found] / sums[of].replace(0, np.nan)).unstack("arm")


def of_attacks(runs: pd.DataFrame) -> pd.DataFrame:
    """Attacks by search gain, then a row a model and attack: what it found, what it missed, and what to be wary of."""
    gains, budget = panel_gains(runs), int(runs["budget"].iloc[0])
    rows = {"SEARCH GAIN": {}}
    for name in gains.mean().sort_values(ascending=False).index:
        effect = paired_effect(gains[name].to_numpy())
        rows[f"panel: {name}"] = {"gain": f"{effect.mean:+.2f} [{effect.low:+.2f}, {effect.high:+.2f}]"}
    early = [max(1, budget // 100), budget // 10]
    title = "success by " + ", ".join(f"{calls:,}" for calls in [*early, budget]) + " calls"
    for model, part in runs.groupby("arm", sort=False):
        failures = part[FAILURES]
        known = failures.sum() and not sampled_note(part)
        for name in accounts(part.iloc[0]):
            attacked = [(run, accounts(run)[name]) for _, run in part.iterrows()]
            fields = ("successes", "half", "attackers", "distinct")
            pooled = {field: sum(a[field] for _, a in attacked) for field in fields}
            first, n = pooled_calls(part, name), pooled["attackers"]
            success = clopper_pearson(pooled["successes"], n)
            blind = sum(a["successes"] == 0 and run[FAILURES] > 0 for run, a in attacked)
            levels = [a["egregiousness"] for _, a in attacked if a["successes"]]
            rows[f"{model}: {name}"] = {
                title: " ".join(f"{(first <= calls).mean():.0%}" for calls in early)
                + f" {success.value:.0%} [{success.low:.0%}, {success.high:.0%}]",
                "doubling": f"{(pooled['successes'] - pooled['half']) / n:+.0%}",
                "calls": _calls(first),
                "gain": f"{np.mean([a['gain'] for _, a in attacked]):+.2f}",
                "recall": f"{sum(a['reached'] for _, a in attacked) / listed(failures).sum():.2%}" if known else "-",
                "distinct": f"{pooled['distinct']:,}",
                "egregious": f"{np.mean(levels):.2f}" if levels else "-",
                "falsely robust": f"{blind} of {(failures > 0).sum()}",
                "beware": "; ".join(complaints(signs_of(attacked))),
            }
        rows[f"{model.upper()}: FAILURES"] = {"recall": f"{failures.median():,.0f}"}
    return pd.DataFrame.from_dict(rows, orient="index").fillna("")


def _calls(first: np.ndarray) -> str:
    median = median_calls(first)
    return f"{median:,.0f}" if np.isfinite(median) else "never"


def draw_attacks(runs: pd.DataFrame) -> plots.Figure:
    """Who searches best; what each attack finds and misses on each model; and success against calls."""
    models, gains = list(runs["arm"].unique()), panel_gains(runs)
    gains = gains[gains.mean().sort_values(ascending=False).index]
    failures = runs.groupby("arm", sort=False)[FAILURES].median()
    titles = ["Search gain over random prompts", "Attackers that succeed, %", "Known failures reached, %"]
    figure, (ranking, won, recall, *curves) = plots.panels(
        [*titles, *(f"{model}: {failures[model]:,.0f} failing prompts" for model in models)],
        f"{runs['task'].iloc[0]}, {runs['seed'].nunique()} seeds, "
        f"{setting(runs, 'attackers').iloc[0]} attackers each. Gain: decades by which an attack comes lower than as "
        "many random hazardous prompts (0.16 by chance, dashed), mean of plain, weak and strong; a small point a seed, "
        "orange where gradients are taken.\nBelow: share of attackers that have found a failure within so many forward "
        "passes (1 - Kaplan-Meier, 95 % band; a gradient counts three); thin grey: the attacks that are not named.",
    )
    uses_gradients = {name: bool(account["gradients"]) for name, account in accounts(runs.iloc[0]).items()}
    colors = ["C1" if uses_gradients[name] else "C0" for name in gains]
    plots.ranking(ranking, gains, colors, reference=float(np.log10(1 / np.log(2))))
    ranking.set_xlabel("decades")
    plots.shares(won, pooled_shares(runs, "successes", "attackers").loc[gains.columns, models])
    plots.shares(recall, pooled_shares(runs, "reached", "failures").loc[gains.columns, models])
    for ax, model in zip(curves, models, strict=True):
        success_curves(ax, runs[runs["arm"] == model], list(gains))
    legend = curves[0].get_legend_handles_labels()
    figure.legend(*legend, loc="outside upper right", ncols=len(DRAWN), frameon=False, fontsize=8)
    return figure


def success_curves(ax: plots.Axes, runs: pd.DataFrame, names: list[str]) -> None:
    """Share of attackers that have succeeded against calls: the named ones in colour with their bands."""
    budget = runs["budget"].iloc[0]
    for name in sorted(names, key=DRAWN.__contains__):
        curve = kaplan_meier(pooled_calls(runs, name), budget)
        if name not in DRAWN:
            ax.step(curve.calls, 1 - curve.surviving, where="post", color="0.75", lw=0.8, zorder=1)
            continue
        color = f"C{DRAWN.index(name)}"
        ax.step(curve.calls, 1 - curve.surviving, where="post", color=color, lw=1.8, label=name)
        ax.fill_between(curve.calls, 1 - curve.high, 1 - curve.low, step="post", color=color, alpha=0.15, lw=0)
    ax.set_xscale("log")
    ax.set_xlim(1, budget)
    ax.set_ylim(-0.03, 1.03)
    ax.set_xlabel("calls (forward passes)")
    ax.set_ylabel("share of attackers")
