"""How important is it to update the model frequently?

"If we had instead run many small batches of data collection and retrained the model on each set of fresh adversarial
examples, then the model might have quickly learned to defeat the existing tactics and forced the contractors to cover
more parts of the space." (Redwood Research 2022)

Hypothesis: at equal finds, gradient steps and attack calls, more rounds of attack and training leave fewer failures.
Arms, paired by seed and by every stream of random keys: the plain model; the same extra steps without attacks (the
control: extra training alone removes failures too); 1, 4, 16, ... rounds; one round with four times the finds: how many
more does it need to match? In full also: a generator, which a single round nearly always solves; weaker attacks; fewer
and more finds, because effects saturate; and, since exposures of a find cannot be held equal at the same time, one arm
that holds them equal instead (each find is replayed in its own round only). Half of each batch is clean. Wall-clock
time has no arm of its own: no two machines would agree on it, and it follows the calls and steps that are held equal.

Pre-declared contrast: 1 round against 16, in decades of log10(failing prompts + 1), paired by seed, counted exactly at
threshold 0. Supported if the mean drop is at least one decade, with its 95 % interval above zero, on at least two
tasks, and on these one round with four times the finds still leaves more; refuted if the interval shows a rise on any
task.
"""

import dataclasses
import functools

import numpy as np
import pandas as pd

from experiments.ablation import Contrast, caption_of, findings, verdict
from experiments.arm import Arm, Plain, Recipe, measure
from experiments.preset import Preset
from experiments.summary import of_arms as summary
from testbed import plots
from testbed.statistics import Verdict

__all__ = ["PRESETS", "claim", "grid", "measure", "plot", "summary"]

PRESETS = {
    "small": Preset("injury", seeds=3, minutes=4),
    "quick": Preset("injury,password", seeds=3, minutes=8),
    "full": Preset("injury,password,cipher_vault", seeds=5, minutes=70),
}
ROUNDS = {"small": (1, 4, 16), "quick": (1, 4, 16), "full": (1, 2, 4, 8, 16, 32, 64)}
BASE = {"small": Arm(), "quick": Arm(), "full": Arm(units=64)}
EQUAL = "equal exposures"
ATTACKS = ("gcg", "uniform", "clean_rejection")
CONTRASTS = {"rounds": Contrast("1 round", "16 rounds"), "finds": Contrast("1 round, 4x finds", "16 rounds")}
BESIDE = {
    "still more finds": Contrast("1 round, 8x finds", "16 rounds"),
    "a quarter of the finds": Contrast("1 round", "16 rounds, 0.25x finds"),
    "equal exposures": Contrast("1 round", f"16 rounds, {EQUAL}"),
    "samples, no search": Contrast("1 round, clean_rejection", "16 rounds, clean_rejection"),
    "steps": Contrast("plain", "control"),
}


def grid(preset: str, task: str) -> list[Arm]:
    """Plain, control, each number of rounds, one round with more finds; in full also what else is named above."""
    base = dataclasses.replace(BASE[preset], plain=Plain(task))
    arm = functools.partial(dataclasses.replace, base)

    def finds(times, *rounds):
        return [arm(rounds=r, finds=int(base.finds * times), label=f"{_rounds(r)}, {times:g}x finds") for r in rounds]

    arms = [arm(steps=0), base, *(arm(rounds=rounds) for rounds in ROUNDS[preset])]
    if preset != "small":
        arms += finds(4, 1)
    if preset == "full":
        arms += [arm(rounds=r, attack=a, label=f"{_rounds(r)}, {a}") for a in ATTACKS[1:] for r in (1, 16)]
        arms += [arm(rounds=16, recipe=Recipe(replay="newest"), label=f"16 rounds, {EQUAL}")]
        arms += [*finds(0.25, 1, 16), *finds(2, 1), *finds(4, 16), *finds(8, 1)]
    return arms


def _rounds(number: int) -> str:
    return f"{number} round{'s' * (number > 1)}"


def plot(frame: pd.DataFrame) -> plots.Figure:
    """Failing prompts by rounds and attack, the price, and failing prompts by finds, from the records of one task."""
    left = "greedy.exact.failures"
    control = 10 ** np.log10(frame[frame["arm"] == "control"][left] + 1).mean() - 1
    frame = frame[~frame["arm"].str.endswith(EQUAL) & (frame["config.rounds"] > 0)]
    usual = frame[frame["config.finds"] == frame[frame["arm"].isin(("1 round", "16 rounds"))]["config.finds"].max()]
    gcg, strong = (rows[rows["config.attack"] == "gcg"] for rows in (frame, usual))
    titles = ["Failing prompts by rounds", "Safe prompts refused, whole space", "Failing prompts by finds (gcg)"]
    several = gcg["config.finds"].nunique() > 1
    figure, axes = plots.panels(
        titles if several else titles[:2],
        caption_of(frame, "thick lines the mean; counted exactly.\nSame finds, attack calls and gradient steps along a "
                          "line on the left. Dashed: the same steps without attacks."),
    )  # fmt: skip
    for attack, color in zip(ATTACKS, ("C3", "C1", "C0"), strict=True):
        plots.seeds_along(axes[0], usual[usual["config.attack"] == attack], "config.rounds", left, attack, color)
    at_matched = "gcg, at 1 % clean false alarms"
    plots.seeds_along(axes[0], strong, "config.rounds", "matched.exact.failures", at_matched, "C7", marker="s")
    plots.seeds_along(axes[1], strong, "config.rounds", "greedy.exact.false_alarms", "gcg", "C3")
    if several:
        for number, color in ((1, "C4"), (16, "C2")):
            rows = gcg[gcg["config.rounds"] == number]
            plots.seeds_along(axes[2], rows, "config.finds", left, _rounds(number), color)
    for ax, label in zip(axes, ("rounds", "rounds", "finds"), strict=False):
        ax.set_xlabel(label)
        ax.set_ylabel("prompts (log above 1)")
    for ax in axes[::2]:
        plots.level(ax, control, "no attacks")
        ax.legend(frameon=False, fontsize=8)
    return figure


def claim(frame: pd.DataFrame) -> Verdict:
    """The pre-declared contrast on each task, and the verdict."""
    found = findings(frame, CONTRASTS)
    strong = [task for task, finding in found["rounds"].items() if finding.holds(1)]
    sure = [task for task in strong if task in found["finds"] and found["finds"][task].holds()]
    return verdict(
        found,
        supported=len(sure) >= 2,
        refuted=any(finding.effect.high < 0 for finding in found["rounds"].values()),
        why_not=f"the rule asks for a decade on two tasks, it holds on {len(strong)}; and for more than four times the "
        f"finds to match it in one round, which holds on {len(sure)} of these",
        beside=findings(frame, BESIDE),
    )
