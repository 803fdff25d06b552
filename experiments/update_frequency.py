"""How important is it to update the model frequently?

"If we had instead run many small batches of data collection and retrained the model on each set of fresh adversarial
examples, then the model might have quickly learned to defeat the existing tactics and forced the contractors to cover
more parts of the space." (Redwood Research 2022)

Hypothesis: at equal finds, gradient steps and attack calls, more rounds of attack and training leave fewer failures.
Arms, paired by seed and by every stream of random keys: the plain model; the same extra steps without attacks (the
control: extra training alone removes failures too); and 1, 4, 16, ... rounds. The attack starts from uniformly drawn
hazardous prompts; half of each batch is clean.

Pre-declared contrast: 1 round against 16, in decades of log10(failing prompts + 1), paired by seed, counted exactly at
threshold 0. Supported if the mean drop is at least one decade, with its 95 % interval above zero, on at least two
tasks, and one round needs more than four times the finds to match; refuted if the interval shows a rise on any task.
"""

import dataclasses

import numpy as np
import pandas as pd

from experiments.arm import Arm, Plain, measure
from experiments.summary import by_arm as summary
from testbed import plots
from testbed.evaluation.estimate import Verdict, paired_effect

__all__ = ["GRID", "MINUTES", "SEEDS", "TASK", "claim", "grid", "measure", "plot", "summary"]

TASK = "injury"
SEEDS = {"quick": 3, "full": 10}
MINUTES = {"quick": 5, "full": 240}
GRID = {"quick": (1, 4, 16), "full": (1, 2, 4, 8, 16, 32, 64)}
BASE = {"quick": Arm(), "full": Arm(steps=1536, finds=2048, units=64, attackers=256)}


def grid(preset: str, task: str) -> list[Arm]:
    """The arms: plain, control, and each number of rounds."""
    base = dataclasses.replace(BASE[preset], plain=Plain(task))
    rounds = [dataclasses.replace(base, rounds=rounds) for rounds in GRID[preset]]
    return [dataclasses.replace(base, steps=0), base, *rounds]


def plot(frame: pd.DataFrame) -> plots.Figure:
    """What is left by arm, what it cost, and how long attackers search, from the records of one task."""
    seeds = frame["seed"].nunique()
    figure, (left, middle, right) = plots.panels(
        [
            "Failing prompts, counted exactly",
            "Safe prompts refused, whole space",
            "Attackers that succeed (coordinate)",
        ],
        f"{frame['config.plain.task'].iloc[0]}: one point and thin line a seed ({seeds} paired seeds), thick line the "
        "mean. Arms with rounds make the same finds, attack calls and gradient steps; control makes the steps only.",
    )
    plots.seeds_by_arm(left, frame, "greedy.exact.failures", "threshold 0", "C3")
    plots.seeds_by_arm(left, frame, "matched.exact.failures", "threshold at 1 % clean false alarms", "C0", marker="s")
    left.set_ylabel("prompts (log above 1)")
    left.legend(frameon=False, fontsize=8)
    plots.seeds_by_arm(middle, frame, "greedy.exact.false_alarms", "threshold 0", "C3")
    middle.set_ylabel("prompts (log above 1)")
    for ax in (left, middle):
        ax.tick_params(axis="x", rotation=30)
    plots.success_curves(right, success_rates(frame, "coordinate"), list(frame["arm"].unique()))
    right.set_xlabel("budget (forward passes an attacker)")
    right.set_ylabel("share of attackers")
    right.legend(frameon=False, fontsize=8)
    return figure


def success_rates(frame: pd.DataFrame, attack: str) -> pd.DataFrame:
    """Columns arm, seed, budget, rate: one row a run and budget."""
    head = f"attacks.{attack}.within."
    long = frame.melt(["arm", "seed"], [c for c in frame if c.startswith(head)], "budget", "successes")
    long["budget"] = long["budget"].str.removeprefix(head).astype(int)
    trials = frame.set_index(["arm", "seed"])[f"attacks.{attack}.attackers"]
    long["rate"] = long["successes"] / trials.loc[pd.MultiIndex.from_frame(long[["arm", "seed"]])].to_numpy()
    return long.sort_values("budget")


def claim(frame: pd.DataFrame) -> Verdict:
    """The pre-declared contrast on each task, and the verdict."""
    effects = {}
    for task, rows in frame.groupby("config.plain.task"):
        left = np.log10(rows.pivot_table(index="seed", columns="arm", values="greedy.exact.failures") + 1)
        drops = left.reindex(columns=["1 round", "16 rounds"]).dropna().diff(axis=1).iloc[:, 1]
        if len(drops):
            effects[task] = paired_effect(-drops.to_numpy())
    if not effects:
        return Verdict("undecided", "no seed has both arms of the contrast (1 round and 16 rounds)")
    lines = "; ".join(
        f"{task}: 16 rounds leave {e.mean:.2f} decades fewer failing prompts than 1 "
        f"[95 % {e.low:.2f}, {e.high:.2f}] ({e.pairs} seeds, sign-flip p = {e.p_value:.2f})"
        for task, e in effects.items()
    )
    if any(e.high < 0 for e in effects.values()):
        return Verdict("refuted", lines)
    strong = sum(e.mean >= 1 and e.low > 0 for e in effects.values())
    missing = [] if strong >= 2 else [f"the rule asks for a decade on two tasks, it holds on {strong}"]
    missing.append("how many more finds one round needs was not measured")
    return Verdict("undecided", f"{lines}; {'; '.join(missing)}")
