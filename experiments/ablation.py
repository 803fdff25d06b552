"""What the ablations share: pre-declared contrasts between arms, paired by seed, and the figure of what is left."""

import dataclasses
import functools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd

from experiments.arm import Arm, Plain
from tasks import task_named
from testbed import plots
from testbed.evaluation import exact
from testbed.statistics import Effect, Verdict, paired_effect

BY_TASK = "config.plain.task"
COUNTED = {
    "failures": "failing prompts",
    "egregious": "egregious failures",
    "planted": "planted failures",
    "natural": "failures that nobody planted",
}


def plain_to_trained(task: str) -> list[Arm]:
    """Plain, control, and adversarial training in 1 and 16 rounds: the models of `update_frequency`."""
    arm = functools.partial(dataclasses.replace, Arm(Plain(task)))
    return [arm(steps=0), arm(), arm(rounds=1), arm(rounds=16)]


def unattacked(arms: list[Arm]) -> list[Arm]:
    """The arms, evaluated without attacks where every prompt is judged: no attack finds more, and it takes minutes."""
    counted = {arm.plain.task: exact.countable(task_named(arm.plain.task)) for arm in arms}
    return [dataclasses.replace(arm, attackers=0) if counted[arm.plain.task] else arm for arm in arms]


class Contrast(NamedTuple):
    """Two arms and what is counted: does `after` leave less than `before`?

    `of` is a number under `exact` in the records, one of `COUNTED`.
    """

    before: str
    after: str
    of: str = "failures"


class Finding(NamedTuple):
    """A contrast on one task, in decades fewer: at threshold 0, and at 1 % clean false alarms; Holm's p-value."""

    contrast: Contrast
    effect: Effect
    matched: Effect
    p_value: float

    @property
    def text(self) -> str:
        """The finding as a clause."""
        e, m = self.effect, self.matched
        what = COUNTED[self.contrast.of]
        return (
            f"'{self.contrast.after}' leaves {e.mean:.2f} decades fewer {what} than '{self.contrast.before}' "
            f"{interval(e)} ({e.pairs} seeds, Holm p = {self.p_value:.2f}; at 1 % clean false "
            f"alarms {m.mean:.2f} [{m.low:.2f}, {m.high:.2f}])"
        )

    def holds(self, least: float = 0.0) -> bool:
        """Whether the drop is at least so many decades, and its interval above zero."""
        return self.effect.mean >= least and self.effect.low > 0


def interval(bounds) -> str:
    """The 95 % interval of an effect or a share: of whatever has `low` and `high`."""
    return f"[95 % {bounds.low:.2f}, {bounds.high:.2f}]"


def times(effect: Effect) -> str:
    """An effect in decades as a factor, with its interval."""
    return f"{10**effect.mean:.2g} [95 % {10**effect.low:.2g}, {10**effect.high:.2g}]"


def with_finds(arm: str, finds: int, usual: int) -> str:
    """What an arm is called whose number of finds is not the usual one."""
    return arm if finds == usual else f"{arm}, {finds} finds"


def holm(p_values: Sequence[float]) -> np.ndarray:
    """p-values adjusted for how many there are, by Holm's step-down rule (Holm 1979)."""
    p = np.asarray(p_values, float)
    order = p.argsort()
    stepped = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    return np.minimum(stepped, 1)[order.argsort()]


def drops(rows: pd.DataFrame, contrast: Contrast, policy: str = "greedy") -> np.ndarray:
    """Decades of log10(count + 1) by which `after` leaves less than `before`, one for each seed that has both."""
    wide = rows.pivot_table(index="seed", columns="arm", values=f"{policy}.exact.{contrast.of}")
    both = np.log10(wide.reindex(columns=[contrast.before, contrast.after]).astype(float) + 1).dropna()
    return (both[contrast.before] - both[contrast.after]).to_numpy()


def findings(frame: pd.DataFrame, contrasts: dict[str, Contrast]) -> dict[str, dict[str, Finding]]:
    """Contrasts: name -> task -> Finding, p-values corrected over all that are given.

    A contrast without a complete pair on a task is left out there.
    """
    effects = {
        (name, task): [paired_effect(drops(rows, contrast, policy)) for policy in ("greedy", "matched")]
        for task, rows in frame.groupby(BY_TASK, sort=False)
        for name, contrast in contrasts.items()
        if len(drops(rows, contrast))
    }
    found = {name: {} for name in contrasts}
    p_values = holm([greedy.p_value for greedy, _ in effects.values()])
    for ((name, task), both), p_value in zip(effects.items(), p_values, strict=True):
        found[name][task] = Finding(contrasts[name], *both, float(p_value))
    return found


def told(found: dict[str, dict[str, Finding]]) -> str:
    """All findings as text, task by task."""
    tasks = dict.fromkeys(task for by_task in found.values() for task in by_task)
    return "; ".join(
        f"{task}: " + ", ".join(by_task[task].text for by_task in found.values() if task in by_task) for task in tasks
    )


def brief(found: dict[str, dict[str, Finding]]) -> str:
    """All effects at threshold 0, a line for each contrast."""
    lines = []
    for by_task in filter(None, found.values()):
        contrast = next(iter(by_task.values())).contrast
        effects = brief_effects({task: finding.effect for task, finding in by_task.items()})
        lines.append(f"decades fewer by '{contrast.after}' than by '{contrast.before}': {effects}")
    return "\n".join(lines)


def brief_effects(effects: dict[str, Effect]) -> str:
    """The effect on each task, with its interval."""
    return ", ".join(f"{task} {e.mean:.2f} [{e.low:.2f}, {e.high:.2f}]" for task, e in effects.items())


def verdict(
    found: dict[str, dict[str, Finding]],
    supported: bool,
    refuted: bool,
    why_not: str,
    beside: dict[str, dict[str, Finding]] | None = None,
) -> Verdict:
    """The verdict of a rule, with every effect; `why_not` says what an undecided one lacks.

    `beside` are findings that decide nothing, since no rule named them before the runs: they are told as such.
    Undecided, whatever the rule says, where no seed has both arms of any contrast.
    """
    text, short = told(found), brief(found)
    if not text:
        return Verdict("undecided", "no seed has both arms of a contrast")
    outcome = "refuted" if refuted else "supported" if supported else "undecided"
    if outcome == "undecided":
        text, short = f"{text}; {why_not}", f"{short}\n{why_not}"
    return Verdict(outcome, text + not_declared(beside or {}), short)


def not_declared(beside: dict[str, dict[str, Finding]]) -> str:
    """Findings that no rule named before the runs, as text that goes on where a verdict's ends."""
    return f"; not pre-declared: {told(beside)}" if any(beside.values()) else ""


def draw_arms(
    frame: pd.DataFrame,
    caption: str = "",
    of: Sequence[str] = ("failures",),
    more: Sequence[tuple[str, str]] = (),
) -> plots.Figure:
    """Each arm of one task: what is `COUNTED` at both thresholds, the price in refused safe prompts, and `more`.

    That is: columns of further counts of prompts, each with the title of its panel.
    """
    titles = [f"{COUNTED[what].capitalize()}, counted exactly" for what in of]
    titles += ["Safe prompts refused, whole space", *(title for _, title in more)]
    figure, axes = plots.panels(titles, caption_of(frame, caption))
    counts, others = axes[: len(of)], axes[len(of) :]
    for ax, what in zip(counts, of, strict=True):
        named = ax is counts[0]
        plots.dots_by_arm(ax, frame, f"greedy.exact.{what}", "threshold 0", "C3", names=named)
        at_matched = "threshold at 1 % clean false alarms"
        plots.dots_by_arm(ax, frame, f"matched.exact.{what}", at_matched, "C0", marker="s", names=named)
    for ax, column in zip(others, ("greedy.exact.false_alarms", *(column for column, _ in more)), strict=True):
        plots.dots_by_arm(ax, frame, column, "threshold 0", "C3", names=False)
    # Above the panels: inside, a mark of the legend looks like one more point.
    figure.legend(*counts[0].get_legend_handles_labels(), loc="outside upper right", ncols=2, frameon=False, fontsize=8)
    for ax in axes:
        ax.set_xlabel("prompts (log above 1)")
    return figure


def caption_of(frame: pd.DataFrame, more: str = "") -> str:
    """What every figure of one task says below its panels."""
    return f"{frame[BY_TASK].iloc[0]}: one small point a seed ({frame['seed'].nunique()} paired seeds); {more}"
