"""Figures: the only file that imports matplotlib. Every helper draws the single runs, not only their mean."""

import io
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd

matplotlib.use("Agg")

from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from testbed.results import write_atomically


def panels(titles: Sequence[str], caption: str) -> tuple[Figure, list[Axes]]:
    """A row of titled panels over a caption that says what the reader sees."""
    figure, axes = plt.subplots(1, len(titles), figsize=(4.6 * len(titles), 4.2), layout="constrained", squeeze=False)
    for ax, title in zip(axes[0], titles, strict=True):
        ax.set_title(title, fontsize=10, loc="left", fontweight="bold")
        ax.spines[["top", "right"]].set_visible(False)
    figure.supxlabel(caption, fontsize=8.5, x=0.01, ha="left")
    return figure, list(axes[0])


def shades(count: int) -> np.ndarray:
    """Colours `[count, 4]` in an order that survives printing in grey."""
    return plt.get_cmap("viridis")(np.linspace(0, 0.9, count))


def kinds(count: int) -> list[tuple]:
    """Colours of up to 20 things without an order."""
    return [plt.get_cmap("tab20")(number % 20) for number in range(count)]


def seeds_by_arm(ax: Axes, table: pd.DataFrame, value: str, label: str, color: str, marker: str = "o") -> None:
    """One line a seed across the arms (column `arm`, in order), and the mean of log10(value + 1) as a thick line.

    The axis is logarithmic above 1 and linear below, so that zero can be shown.
    """
    wide = table.pivot_table(index="arm", columns="seed", values=value, sort=False)
    x = np.arange(len(wide))
    _paired_lines(ax, x, wide, label, color, marker)
    ax.set_xticks(x, wide.index)


def seeds_along(ax: Axes, table: pd.DataFrame, x: str, value: str, label: str, color: str, marker: str = "o") -> None:
    """The same along a number (column `x`) on an axis of doublings; nothing where the table is empty."""
    if table.empty:
        return
    wide = table.pivot_table(index=x, columns="seed", values=value)
    _paired_lines(ax, wide.index, wide, label, color, marker)
    ax.set_xscale("log", base=2)
    ax.xaxis.set_major_formatter("{x:g}")


def _paired_lines(ax, x, wide, label, color, marker):
    for seed in wide:
        ax.plot(x, wide[seed], color=color, lw=0.8, alpha=0.5, marker=marker, ms=4)
    ax.plot(x, 10 ** np.log10(wide + 1).mean(axis=1) - 1, color=color, lw=2.2, label=label)
    ax.set_yscale("symlog", linthresh=1)
    ax.set_ylim(-0.2, 3 * max(1, wide.to_numpy().max(), ax.get_ylim()[1] / 3))


def dots_by_arm(
    ax: Axes, table: pd.DataFrame, value: str, label: str, color: str, marker: str = "o", names: bool = True
) -> None:
    """One row an arm (column `arm`, first on top), one point a seed, and the mean of log10(value + 1) as a bar."""
    wide = table.pivot_table(index="arm", columns="seed", values=value, sort=False)
    y = np.arange(len(wide))
    for seed in wide:
        ax.plot(wide[seed], y, marker, color=color, ms=4, alpha=0.5)
    ax.plot(10 ** np.log10(wide + 1).mean(axis=1) - 1, y, "|", color=color, ms=14, mew=2.2, label=label)
    ax.set_yticks(y, wide.index if names else [])
    ax.set_ylim(len(wide) - 0.5, -0.5)
    ax.set_xscale("symlog", linthresh=1)
    ax.set_xlim(-0.3, 3 * max(1, wide.to_numpy().max(), ax.get_xlim()[1] / 3))


def success_curves(ax: Axes, table: pd.DataFrame, arms: Sequence[str]) -> None:
    """Share of attackers that have succeeded against budget, one line an arm (mean over seeds), points a seed.

    `table` has columns arm, seed, budget, rate.
    """
    for arm, color in zip(arms, shades(len(arms)), strict=True):
        rows = table[table["arm"] == arm]
        ax.plot(rows["budget"], rows["rate"], ".", color=color, ms=5, alpha=0.6)
        mean = rows.groupby("budget")["rate"].mean()
        ax.plot(mean.index, mean, color=color, lw=2, label=arm)
    ax.set_xscale("log")
    ax.set_ylim(-0.03, 1.03)


def save(figure: Figure, path: Path) -> None:
    """Write a figure as PNG, whole or not at all, and close it."""
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=150, metadata={"Software": None})
    plt.close(figure)
    write_atomically(path, data.getvalue())
