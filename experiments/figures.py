"""Figures that questions share: what is left of each arm, and its price."""

from collections.abc import Mapping, Sequence

import pandas as pd

from experiments.columns import COUNTED, POLICIES, WHOLE, column_of, counts, judged, spent
from experiments.tables import prompts
from testbed import plots

SPENT = {
    "labels": "labels beside clean batches",
    "judged": "labels and verdicts of the checker",
    "forwards": "forward-pass equivalents",
}


def draw_arms(
    runs: pd.DataFrame,
    caption: str = "",
    of: Sequence[str] = ("failures",),
    more: Sequence[tuple[str, str]] = (),
) -> plots.Figure:
    """Each arm of one task: what is `COUNTED` at both thresholds, the price in refused safe prompts, and `more`.

    That is: columns of further counts of prompts, each with the title of its panel. What no run has any of, beside
    failing prompts, is said in the caption and has no panel.
    """
    none = [what for what in of[1:] if not counts(runs, what).any()]
    of = [what for what in of if what not in none]
    caption += "".join(f" No run has {COUNTED[what]}." for what in none)
    titles = [f"{COUNTED[what].capitalize()}, counted exactly" for what in of]
    titles += ["Safe prompts refused, whole space", *(title for _, title in more)]
    figure, axes = plots.panels(titles, caption_of(runs, caption))
    counted, others = axes[: len(of)], axes[len(of) :]
    drawn = zip(POLICIES.items(), ("C3", "C0"), "os", plots.SHIFTS, strict=True)
    for (policy, label), color, marker, shift in drawn:
        for ax, what in zip(counted, of, strict=True):
            plots.dots_by_arm(ax, runs, column_of(what, policy), label, color=color, marker=marker, shift=shift)
            ax.set_xlabel(prompts_of(runs, what))
    for ax, column in zip(others, (column_of("false_alarms"), *(column for column, _ in more)), strict=True):
        plots.dots_by_arm(ax, runs, column, POLICIES["greedy"], color="C3")
        ax.set_xlabel("how many (log above 1)")
    others[0].set_xlabel(prompts_of(runs, "false_alarms"))
    # Above the panels: inside, a mark of the legend looks like one more point.
    legend = counted[0].get_legend_handles_labels()
    figure.legend(*legend, loc="outside upper right", ncols=2, frameon=False, fontsize=8)
    return figure


def prompts_of(runs: pd.DataFrame, what: str = "failures") -> str:
    """The label of an axis of prompts of one task: what of `COUNTED` it shows, and of how many."""
    kind = WHOLE.get(what)
    numbers = counts(runs, kind).dropna().unique() if kind and column_of(kind) in runs else []
    return f"{COUNTED[what]} (of {prompts(numbers[0])} {kind})" if len(numbers) == 1 else COUNTED[what]


def draw_against(
    runs: pd.DataFrame, curves: Mapping[str, Sequence[str]], of: Sequence[str] = tuple(SPENT), caption: str = ""
) -> plots.Figure:
    """Failing prompts against what was spent, from one task: a panel for each of `of`, names of `SPENT`.

    `curves`: the arms of each curve, by its name. An arm that spent nothing of a kind is no point there.
    """
    figure, axes = plots.panels([f"By {SPENT[what]}" for what in of], caption_of(runs, caption))
    for ax, what in zip(axes, of, strict=True):
        numbers = judged(runs) if what == "judged" else spent(runs, what)
        table = runs.assign(**{what: numbers.astype(float)})[numbers > 0]
        for color, (name, arms) in zip(plots.kinds(len(curves)), curves.items(), strict=True):
            rows = table[table["arm"].isin(arms)]
            if len(rows):
                plots.arms_along(ax, rows, what, column_of("failures"), label=name, color=color)
        ax.set_xscale("log")
        ax.set_xlabel(SPENT[what])
        ax.set_ylabel(prompts_of(runs))
    # Where most arms are, as a rule by forward passes: there each has its name.
    plots.legend_below(max(axes, key=lambda ax: len(ax.get_legend_handles_labels()[1])), columns=3)
    return figure


def caption_of(runs: pd.DataFrame, more: str = "") -> str:
    """What every figure of one task says below its panels."""
    if not len(runs):  # those of all its arms have failed
        return f"no run to draw; {more}"
    return f"{runs['task'].iloc[0]}: one small point a seed ({runs['seed'].nunique()} paired seeds); {more}"
