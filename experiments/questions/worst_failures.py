"""Is it correct that we need to be training on the worst failures?

"Is it correct that we need to be training on the worst failures?" (Redwood Research 2022)

Hypothesis: a model trained on what barely fails goes on failing egregiously. Every attack unit brings home four times
the finds that the pool has room for, and the arms differ only in which quarter is kept: anyone, the lowest margins, the
borderline ones (smallest margin in size among failures), the most egregious, or (in full) a mixture of these three.
Uniform search, so that the candidates differ; few finds, so that egregious failures are left to be counted. On `injury`
the severe contains the mild and hardly ever fails; in `injury_two` they are two mechanisms; in `password` severe means
farther from a match. Where no candidate is more egregious than another the egregious are anyone, and the verdict says
in how many seeds that was so: in all on `injury`, which only full asks, as it does more rounds, a quarter of the finds,
and `injury_two` at three sigmas: the chance that a clean mild event is also written in passive order.

Pre-declared contrast: trained on the most egregious against trained on the borderline, in decades of log10(egregious
failures + 1), counted exactly at threshold 0. Supported if borderline training leaves more than ten times the egregious
failures, with the 95 % interval of the ratio above one, on at least two tasks; refuted if the interval shows fewer on
any task.
"""

import dataclasses
import functools

import pandas as pd

from experiments.ablation import BY_TASK, Contrast, draw_arms, findings, verdict, with_finds
from experiments.arm import Arm, Plain, Recipe, measure
from experiments.preset import Preset
from experiments.summary import of_arms as summary
from testbed.statistics import Verdict

__all__ = ["PRESETS", "claim", "grid", "measure", "plot", "summary"]

PRESETS = {
    "quick": Preset("injury_two,password", seeds=3, minutes=6),
    "full": Preset("injury,injury_two,injury_two:sigma=0.1,injury_two:sigma=1.0,password", seeds=10, minutes=150),
}
BASE = Arm(finds=128, attack="uniform")
SIZES = {"quick": [(1, 128)], "full": [(1, 128), (4, 128), (16, 128), (1, 32)]}  # rounds, finds
QUICK = ("anyone", "worst", "borderline", "egregious")
KEPT = {"quick": QUICK, "full": (*QUICK, "mixed")}


def named(order: str, rounds: int, finds: int) -> str:
    """What an arm is called."""
    return with_finds(order if rounds == 1 else f"{order}, {rounds} rounds", finds, BASE.finds)


CONTRASTS = {"worst": Contrast("borderline", "egregious", of="egregious")}
BESIDE = {"lowest margins": Contrast("worst", "borderline")}
BESIDE |= {
    named("egregious", *size): Contrast(named("borderline", *size), named("egregious", *size), of="egregious")
    for size in SIZES["full"][1:]
}

plot = functools.partial(
    draw_arms, of=("egregious",), caption="same candidates, finds and steps; arms differ in which finds are kept."
)


def grid(preset: str, task: str) -> list[Arm]:
    """Plain, control, and each way to choose a quarter of the candidates, for each number of rounds and of finds."""
    base = dataclasses.replace(BASE, plain=Plain(task))

    def arm(order, *size):
        recipe, label = Recipe(order=order, candidates=4), named(order, *size)
        return dataclasses.replace(base, rounds=size[0], finds=size[1], recipe=recipe, label=label)

    kept = [arm(order, *size) for size in SIZES[preset] for order in KEPT[preset]]
    return [dataclasses.replace(base, steps=0), base, *kept]


def no_choice(rows: pd.DataFrame) -> list[int]:
    """The seeds in which the egregious finds left what anyone's left, by all counts, in the records of one task."""
    counts = ["greedy.exact.failures", "greedy.exact.egregious", "matched.exact.failures", "greedy.exact.false_alarms"]
    anyone, egregious = (rows[rows["arm"] == arm].set_index("seed")[counts] for arm in ("anyone", "egregious"))
    seeds = anyone.index.intersection(egregious.index)
    return seeds[(anyone.loc[seeds] == egregious.loc[seeds]).all(axis=1)].tolist()


def claim(frame: pd.DataFrame) -> Verdict:
    """The pre-declared contrast on each task, and the verdict; the seeds that cannot tell are counted."""
    found = findings(frame, CONTRASTS)
    strong = [task for task, finding in found["worst"].items() if finding.holds(1)]
    judged = verdict(
        found,
        supported=len(strong) >= 2,
        refuted=any(finding.effect.high < 0 for finding in found["worst"].values()),
        why_not=f"the rule asks for a factor of ten on two tasks, it holds on {len(strong)}",
        beside=findings(frame, BESIDE),
    )
    notes = [note for task, rows in frame.groupby(BY_TASK, sort=False) if (note := _of_no_choice(task, rows))]
    return judged._replace(why="; ".join([judged.why, *notes]))


def _of_no_choice(task: str, rows: pd.DataFrame) -> str:
    """What must be said of the seeds in which the egregious finds were anyone's, and what the others say."""
    alike = no_choice(rows)
    if not alike:
        return ""
    note = f"{task} cannot tell in {len(alike)} of {rows['seed'].nunique()} seeds: 'egregious' left what 'anyone' "
    note += "left, as where no candidate is more egregious than another"
    others = findings(rows[~rows["seed"].isin(alike)], CONTRASTS)["worst"]
    return note + "".join(f" (the others, not pre-declared: {other.text})" for other in others.values())
