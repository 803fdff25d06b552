"""Does adversarial training reduce the random failure rate, or only make failures harder to find?

"Our adversarial training didn't reduce the random failure rate." (Redwood Research 2022)

Hypothesis: attackers need longer against an adversarially trained model, and on ordinary prompts it fails as often as
before. The control takes the same extra steps without attacks. The clean failure rate is no sample: it is the sum of
the clean distribution over every failing prompt. The attacker is the rewriting tool (`saliency`), by the calls that
half of all attackers need. The models are those of 1 and 16 rounds of gcg only.

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
from experiments.ablation import BY_TASK, caption_of, holm, plain_to_trained, times
from experiments.arm import Arm, defended_model
from experiments.preset import Preset
from experiments.summary import of_arms as summary
from tasks import task_named
from testbed import plots
from testbed.attacks import ATTACKS
from testbed.evaluation.account import calls_to_failure
from testbed.evaluation.survival import median_within
from testbed.objective import Objective
from testbed.policy import greedy
from testbed.statistics import Verdict, paired_effect
from testbed.watch import Watch

__all__ = ["PRESETS", "claim", "grid", "measure", "plot", "summary"]

TASKS = "injury,cipher_vault"
PRESETS = {
    "quick": Preset(TASKS, seeds=3, minutes=4),
    "full": Preset(TASKS, seeds=10, minutes=10),
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
    """Decades by which the median calls, and the clean failure rate, rise from control to 16 rounds, a seed each.

    The rate at threshold 0, and then, not pre-declared, at 1 % clean false alarms.
    """
    calls = rows.apply(lambda row: median_within(row["first"], row["budget"]), axis=1)
    known = rows.reindex(columns=[f"{policy}.exact.clean_failure" for policy in ("greedy", "matched")])
    rates = known.astype(float).clip(lower=LEAST)
    tables = (rows[["seed", "arm"]].assign(decades=np.log10(values)) for values in (calls, *(rates[c] for c in rates)))
    wide = (table.pivot_table(index="seed", columns="arm", values="decades") for table in tables)
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
    by_task = {task: ratios(rows) for task, rows in frame.groupby(BY_TASK, sort=False)}
    told = {
        task: [*map(paired_effect, both), matched] for task, (*both, matched) in by_task.items() if all(map(len, both))
    }
    if not told:
        return Verdict("undecided", "no seed has both arms (control and 16 rounds) with their clean failure rates")
    p_values = iter(holm([effect.p_value for calls, rate, _ in told.values() for effect in (calls, rate)]))
    lines, short, holds, falls = [], [], [], []
    for task, (calls, rate, matched) in told.items():
        holds.append(calls.low > 0 and calls.mean >= np.log10(2) and rate.low <= 0 <= rate.high)
        falls.append(rate.high < 0)
        beside = f"; at 1 % clean false alarms times {times(paired_effect(matched))}" if len(matched) else ""
        short.append(f"{task}: calls times {times(calls)}, clean failure rate times {times(rate)}")
        lines.append(
            f"{task}: calls to the first failure times {times(calls)} (Holm p = {next(p_values):.2f}), clean failure "
            f"rate times {times(rate)} ({calls.pairs} seeds, Holm p = {next(p_values):.2f}{beside}; zero counts as "
            f"{LEAST:.0e})"
        )
    outcome = "refuted" if any(falls) else "supported" if all(holds) else "undecided"
    return Verdict(outcome, "; ".join(lines), "\n".join(short))
