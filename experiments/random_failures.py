"""Does adversarial training reduce the random failure rate, or only make failures harder to find?

"Our adversarial training didn't reduce the random failure rate." (Redwood Research 2022)

Hypothesis: attackers need longer against an adversarially trained model, and on ordinary prompts it fails as often as
before. The control takes the same extra steps without attacks. The clean failure rate is no sample: it is the sum of
the clean distribution over every failing prompt. The attacker is the rewriting tool (`saliency`), by the calls that
half of all attackers need.

Pre-declared contrasts, paired by seed: log10 of the median calls to the first failure (a median beyond the budget
counts as the budget), and log10 of the clean failure rate, 16 rounds against control. Supported if on every task the
calls at least double (95 % interval of the ratio above one, mean at least two) while the interval of the rate ratio
covers one; refuted if on any task that interval lies below one: then random failures fall too.
"""

from pathlib import Path
from typing import Any

import jax
import numpy as np

from experiments import arm as arms
from experiments.ablation import BY_TASK, caption_of, plain_to_trained
from experiments.arm import Arm, defended_model
from experiments.preset import Preset
from experiments.summary import of_arms as summary
from tasks import task_named
from testbed import plots
from testbed.attacks import ATTACKS
from testbed.evaluation.estimate import Verdict, paired_effect
from testbed.evaluation.report import Watch, calls_to_failure
from testbed.evaluation.survival import median_within
from testbed.objective import Objective
from testbed.policy import greedy

__all__ = ["PRESETS", "claim", "grid", "measure", "plot", "summary"]

TASKS = "injury,cipher_vault"
PRESETS = {
    "quick": Preset(TASKS, seeds=3, minutes=3),
    "full": Preset(TASKS, seeds=10, minutes=60),
}
TOOL, BUDGET = "saliency", 10_000
LEAST = 1e-12  # a rate of zero counts as this


def grid(preset: str, task: str) -> list[Arm]:
    """Plain, control, and adversarial training in 1 and 16 rounds."""
    return plain_to_trained(task)


def measure(arm: Arm, seed: int, folder: Path, watch: Watch) -> dict[str, Any]:
    """An arm's account, with the calls that each attacker needed."""
    measured, task = arms.measure(arm, seed, folder, watch), task_named(arm.plain.task)
    objective = Objective(task, defended_model(arm, seed, folder, watch).model, greedy(task))
    key, budget = jax.random.fold_in(jax.random.key(seed), 5), BUDGET * objective.forwards
    first = calls_to_failure(key, objective, ATTACKS[TOOL](), arm.attackers, budget)
    return measured | {"first": first, "budget": budget}


def ratios(rows):
    """Decades by which the median calls, and the clean failure rate, rise from control to 16 rounds, a seed each."""
    calls = rows.apply(lambda row: median_within(row["first"], row["budget"]), axis=1)
    rate = rows["greedy.exact.clean_failure"].astype(float).clip(lower=LEAST)
    table = rows[["seed", "arm"]].assign(calls=np.log10(calls), rate=np.log10(rate))
    wide = (table.pivot_table(index="seed", columns="arm", values=kind) for kind in ("calls", "rate"))
    both = (w.reindex(columns=["control", "16 rounds"]).dropna() for w in wide)
    return [(pair["16 rounds"] - pair["control"]).to_numpy() for pair in both]


def plot(frame) -> plots.Figure:
    """Calls to the first failure and clean failures in a million prompts, arm by arm, from one task."""
    calls = frame.apply(lambda row: median_within(row["first"], row["budget"]), axis=1)
    rate = frame["greedy.exact.clean_failure"].astype(float) * 1e6
    table = frame.assign(calls=calls, rate=rate)
    titles = [f"Median calls to the first failure ({TOOL})", "Clean prompts that fail, in a million (exact)"]
    figure, (left, right) = plots.panels(titles, caption_of(frame, f"at most {BUDGET:,} calls."))
    plots.dots_by_arm(left, table, "calls", "calls", "C0")
    plots.dots_by_arm(right, table, "rate", "rate", "C3", names=False)
    return figure


def claim(frame) -> Verdict:
    """Both pre-declared ratios on each task, and the verdict."""
    lines, holds, falls = [], [], []
    for task, rows in frame.groupby(BY_TASK, sort=False):
        if not len(ratios(rows)[0]):
            continue
        calls, rate = map(paired_effect, ratios(rows))
        holds.append(calls.low > 0 and calls.mean >= np.log10(2) and rate.low <= 0 <= rate.high)
        falls.append(rate.high < 0)
        texts = (f"{10**e.mean:.2g} [95 % {10**e.low:.2g}, {10**e.high:.2g}]" for e in (calls, rate))
        lines.append("{}: calls to the first failure times {}, clean failure rate times {} ({} seeds)".format(
            task, *texts, calls.pairs))  # fmt: skip
    if not lines:
        return Verdict("undecided", "no seed has both arms (control and 16 rounds)")
    return Verdict("refuted" if any(falls) else "supported" if all(holds) else "undecided", "; ".join(lines))
