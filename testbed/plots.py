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
    for seed in wide:
        ax.plot(x, wide[seed], color=color, lw=0.8, alpha=0.5, marker=marker, ms=4)
    ax.plot(x, 10 ** np.log10(wide + 1).mean(axis=1) - 1, color=color, lw=2.2, label=label)
    ax.set_xticks(x, wide.index)
    ax.set_yscale("symlog", linthresh=1)
    ax.set_ylim(-0.2, 3 * max(1, wide.to_numpy().max(), ax.get_ylim()[1] / 3))


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


def costs(ax: Axes, table: pd.DataFrame, base: int) -> None:
    """Cost over that at size `base`, log-log, a line a work, its slope in the legend.

    `table` has columns work, value (the size), cost.
    """
    for (work, rows), marker in zip(table.groupby("work", sort=False), "osD^v", strict=False):
        relative = rows["cost"] / rows.loc[rows["value"] == base, "cost"].item()
        slope = np.polyfit(np.log(rows["value"]), np.log(relative), 1)[0]
        ax.loglog(rows["value"], relative, marker=marker, ms=5, label=f"{work} ({slope:.2f})")
    ax.axhline(1, color="0.8", lw=0.8, zorder=0)
    ax.set_xticks(table["value"].unique(), [str(value) for value in table["value"].unique()])
    ax.minorticks_off()
    ax.legend(frameon=False, fontsize=8)


def save(figure: Figure, path: Path) -> None:
    """Write a figure as PNG, whole or not at all, and close it."""
    data = io.BytesIO()
    figure.savefig(data, format="png", dpi=150, metadata={"Software": None})
    plt.close(figure)
    write_atomically(path, data.getvalue())
