"""Figures that questions share: what is left of each arm, and its price."""

from collections.abc import Sequence

import pandas as pd

from experiments.columns import COUNTED, POLICIES, column_of
from testbed import plots


def draw_arms(
    runs: pd.DataFrame,
    caption: str = "",
    of: Sequence[str] = ("failures",),
    more: Sequence[tuple[str, str]] = (),
) -> plots.Figure:
    """Each arm of one task: what is `COUNTED` at both thresholds, the price in refused safe prompts, and `more`.

    That is: columns of further counts of prompts, each with the title of its panel.
    """
    titles = [f"{COUNTED[what].capitalize()}, counted exactly" for what in of]
    titles += ["Safe prompts refused, whole space", *(title for _, title in more)]
    figure, axes = plots.panels(titles, caption_of(runs, caption))
    counted, others = axes[: len(of)], axes[len(of) :]
    for ax, what in zip(counted, of, strict=True):
        named = ax is counted[0]
        for (policy, label), color, marker in zip(POLICIES.items(), ("C3", "C0"), "os", strict=True):
            plots.dots_by_arm(ax, runs, column_of(what, policy), label, color=color, marker=marker, names=named)
    for ax, column in zip(others, (column_of("false_alarms"), *(column for column, _ in more)), strict=True):
        plots.dots_by_arm(ax, runs, column, POLICIES["greedy"], color="C3", names=False)
    # Above the panels: inside, a mark of the legend looks like one more point.
    legend = counted[0].get_legend_handles_labels()
    figure.legend(*legend, loc="outside upper right", ncols=2, frameon=False, fontsize=8)
    for ax in axes:
        ax.set_xlabel("prompts (log above 1)")
    return figure


def caption_of(runs: pd.DataFrame, more: str = "") -> str:
    """What every figure of one task says below its panels."""
    return f"{runs['task'].iloc[0]}: one small point a seed ({runs['seed'].nunique()} paired seeds); {more}"
