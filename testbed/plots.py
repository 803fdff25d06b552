"""Figures: the only file that imports matplotlib. Every helper draws the single runs, not only their mean.

Figures are made without pyplot, so a notebook keeps its backend and no figure has to be closed.
"""

import io
import itertools
import json
import re
import textwrap
from collections.abc import Iterable, Sequence
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, PercentFormatter

from testbed.runs.results import write_atomically

FORMATS = ("png", "svg", "pdf")
# What says when and by what a file was made is left out: the same figure is the same bytes.
UNDATED = {"png": {"Software": None}, "svg": {"Date": None}, "pdf": {"CreationDate": None}}
TIPS = "tips:"  # begins the gid of a line that says what its points are
ZEROS = "zeros"  # the gid of a text that counts points at zero
SHIFTS = (-0.2, 0.2)  # of two kinds of points of an arm, in rows
ROW, HEIGHT = 9, 230  # of a row of counts of zeros, and of a panel, about, in points
MOST_TICKS = 11  # of an axis of counts: those of a large space have twenty decades
LINE = 0.05  # the height of a line of small text, as a share of a panel's


def panels(titles: Sequence[str], caption: str, columns: int = 2) -> tuple[Figure, list[Axes]]:
    """Titled panels, up to `columns` in a row, over a caption that says what the reader sees.

    Two in a row can be read where a page is 840 pixels wide.
    """
    columns = min(columns, len(titles))
    rows = -(-len(titles) // columns)
    figure = Figure(figsize=(4.6 * columns, 4.2 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, squeeze=False)
    for ax in axes.flat[len(titles) :]:
        ax.remove()
    axes = list(axes.flat[: len(titles)])
    for ax, title in zip(axes, titles, strict=True):
        ax.set_title(title, fontsize=10, loc="left", fontweight="bold")
        ax.spines[["top", "right"]].set_visible(False)
    say_more(figure, caption)
    return figure, axes


def say_more(figure: Figure, text: str) -> None:
    """Add lines below the caption of a figure."""
    lines = [textwrap.fill(line, int(14 * figure.get_figwidth())) for line in text.split("\n")]
    _caption(figure, "\n".join(filter(None, [figure.get_supxlabel(), *lines])))


def _caption(figure: Figure, text: str) -> None:
    figure.supxlabel(text, fontsize=8.5, x=0.01, ha="left")


def shades(count: int) -> np.ndarray:
    """Colours `[count, 4]` in an order that survives printing in grey."""
    return matplotlib.colormaps["viridis"](np.linspace(0, 0.9, count))


def kinds(count: int) -> list[tuple]:
    """Colours of up to 20 things without an order."""
    return [matplotlib.colormaps["tab20"](number % 20) for number in range(count)]


def say_points(line: Line2D, texts: Iterable[str]) -> None:
    """Say what each point of a line is: `testbed.svg` shows it when a reader points there."""
    line.set_gid(TIPS + json.dumps(list(texts)))


def number(value: float) -> str:
    """A number as it is said of a point: the same on machines whose logarithms differ in a last bit."""
    return f"{float(f'{value:.12g}'):,.6g}"


def seeds_along(
    ax: Axes, table: pd.DataFrame, x: str, value: str, *, label: str, color: str, marker: str = "o"
) -> None:
    """One line a seed along a number (column `x`) on an axis of doublings, the mean of log10(value + 1) as a thick one.

    The axis of values is logarithmic above 1 and linear below, so that zero can be shown. Nothing where the table is
    empty.
    """
    if table.empty:
        return
    wide = table.pivot_table(index=x, columns="seed", values=value)
    places = [f"{x.rpartition('.')[2]} {value:g}" for value in wide.index]
    _paired_lines(ax, wide, places, label, color, marker)
    ax.set_xscale("log", base=2)
    ax.xaxis.set_major_formatter("{x:g}")


def name_lines(ax: Axes) -> None:
    """Write the name of each labelled line beside the right edge, level with its end and in its colour.

    Names that would overlap are moved apart. Call it once the limits of the axis are final.
    """
    lines = [line for line in ax.lines if line.get_label() and not line.get_label().startswith("_")]
    names = [textwrap.fill(line.get_label(), 18) for line in lines]
    ends = [np.asarray(line.get_ydata(), float)[-1] for line in lines]
    heights = [(ax.transScale + ax.transLimits).transform((1, end))[1] for end in ends]
    room = [LINE * (1 + name.count("\n")) for name in names]
    for line, name, height in zip(lines, names, moved_apart(heights, room), strict=True):
        ax.text(
            1.02, height, name, transform=ax.transAxes, color=line.get_color(),
            fontsize=8, va="center", linespacing=1,
        )  # fmt: skip


def moved_apart(wanted: Sequence[float], room: Sequence[float]) -> np.ndarray:
    """Heights in [0, 1] near the wanted ones, in their order, where each has its room free around it."""
    heights, order = np.array(wanted, float), np.argsort(wanted, kind="stable")
    for lower, upper in itertools.pairwise(order):
        apart = (room[lower] + room[upper]) / 2
        heights[upper] = max(heights[upper], heights[lower] + apart)
    limit = 1.0
    for place in order[::-1]:  # what was pushed over the top comes down again
        heights[place] = min(heights[place], limit - room[place] / 2)
        limit = heights[place] - room[place] / 2
    return heights


def legend_below(ax: Axes, columns: int = 2) -> None:
    """The legend of a panel, below its axis: inside, it would lie across the data."""
    ax.legend(loc="upper left", bbox_to_anchor=(-0.08, -0.13), ncols=columns, frameon=False, fontsize=8)


def reference_line(ax: Axes, value: float, label: str) -> None:
    """A dashed line across, within the axes; none where the value is NaN."""
    if np.isfinite(value):
        ax.axhline(value, color="0.4", ls="--", lw=1, label=label)
        ax.set_ylim(None, max(ax.get_ylim()[1], 3 * value))


def seeds_by_value(
    ax: Axes, table: pd.DataFrame, x: str, values: Sequence, *, value: str, label: str, color: str
) -> None:
    """One line a seed over the values of a field (column `x`), numbers or words, one step each; the mean thick.

    Runs of a seed that share a value are one point: 10 ** mean(log10(n + 1)) - 1. With an empty `x` all of them do.
    """
    of = table[x] if x else pd.Series([values[0]] * len(table), index=table.index)
    logs = pd.DataFrame({"x": of.map(list(values).index), "seed": table["seed"], "log": np.log10(table[value] + 1)})
    wide = 10 ** logs.pivot_table(index="x", columns="seed", values="log") - 1
    names = [f"{v:g}" if isinstance(v, float) else str(v) for v in values]
    _paired_lines(ax, wide, [f"{x} {names[step]}".strip() for step in wide.index], label, color, "o")
    ax.set_xticks(range(len(values)), names)


def arms_along(ax: Axes, table: pd.DataFrame, x: str, value: str, *, label: str, color: str) -> None:
    """Each run as a point at (column `x`, value), and a thick line through the means of the arms."""
    [runs] = ax.plot(table[x], table[value], "o", color=color, ms=3, alpha=0.5)
    rows = zip(table["arm"], table["seed"], table[value], strict=True)
    say_points(runs, (f"{arm}, seed {seed}: {number(count)}" for arm, seed, count in rows))
    arms = table.groupby("arm").agg({x: "mean", value: lambda left: 10 ** np.log10(left + 1).mean() - 1}).sort_values(x)
    [means] = ax.plot(arms[x], arms[value], "o-", color=color, lw=2.2, ms=6, label=label)
    say_points(means, (f"{arm}, mean: {number(count)}" for arm, count in arms[value].items()))
    ax.set_yscale("symlog", linthresh=1)
    top = 3 * max(1, table[value].max(), ax.get_ylim()[1] / 3)
    ax.set_ylim(_lowest(ax, top), top)


def _paired_lines(ax, wide, places, label, color, marker):
    for seed in wide:
        [line] = ax.plot(wide.index, wide[seed], color=color, lw=0.8, alpha=0.5, marker=marker, ms=4)
        points = zip(places, wide[seed], strict=True)
        say_points(line, (f"{label}, {place}, seed {seed}: {number(count)}" for place, count in points))
    ax.plot(wide.index, 10 ** np.log10(wide + 1).mean(axis=1) - 1, color=color, lw=2.2, label=label)
    ax.set_yscale("symlog", linthresh=1)
    _zeros_below(ax, wide, color)
    top = 3 * max(1, wide.to_numpy().max(), ax.get_ylim()[1] / 3)
    decades = int(np.log10(top)) + 1
    ax.set_ylim(_lowest(ax, top), top)
    ax.set_yticks([0, *(10.0**power for power in range(0, decades, 1 + decades // 8))])  # none below zero


def _zeros_below(ax, wide, color):
    """Below zero, where points hide each other: how many seeds have none, a row of counts for each colour."""
    rows = dict.fromkeys(text.get_color() for text in ax.texts if text.get_gid() == ZEROS)
    height = -ROW * (1 + (list(rows).index(color) if color in rows else len(rows)))
    zeros = [(place, (row == 0).sum(), row.notna().sum()) for place, row in wide.iterrows()]
    if not any(none for _, none, _ in zeros):
        return
    style = dict(textcoords="offset points", color=color, fontsize=6.5, va="center", gid=ZEROS, annotation_clip=False)
    for place, none, of in zeros:
        if none:
            ax.annotate(f"{none}/{of}", (place, 0), (0, height), ha="center", **style)
    if color not in rows:
        ax.annotate("at 0", (0, 0), (-3, height), xycoords=ax.get_yaxis_transform(), ha="right", **style)


def _lowest(ax, top):
    """Where an axis of counts up to `top` ends: below zero, with room for the rows that count zeros."""
    rows = len({text.get_color() for text in ax.texts if text.get_gid() == ZEROS})
    share = ROW * (0.5 + rows) / HEIGHT
    below = (1 + np.log10(top)) * share / (1 - share)  # in decades: the axis is even down to -1, then logarithmic
    return -below if below <= 1 else -(10 ** (below - 1))


def dots_by_arm(
    ax: Axes,
    table: pd.DataFrame,
    value: str,
    label: str,
    *,
    color: str,
    marker: str = "o",
    shift: float = 0.0,
) -> None:
    """One row an arm (column `arm`, first on top), one point a seed, and the mean of log10(value + 1) as a bar.

    Arms that share a part of their name stand under it (`under_headings`). Seeds at zero are spread out and counted.
    With `shift`, in rows, two kinds of points of an arm don't hide each other.
    """
    wide = table.pivot_table(index="arm", columns="seed", values=value, sort=False)
    rows = _paired_dots(ax, wide, 10 ** np.log10(wide + 1).mean(axis=1) - 1, label, color, marker, shift)
    ax.set_xscale("symlog", linthresh=1)
    ax.xaxis.get_major_locator().set_params(numticks=MOST_TICKS)
    zeros = (wide == 0).sum(axis=1)
    for row, none, of in zip(rows, zeros, wide.notna().sum(axis=1), strict=True):
        if none:
            ax.text(-0.2, row, f"{none}/{of}", color=color, fontsize=6.5, ha="right", va="center", gid=ZEROS)
    least = -0.9 if any(text.get_gid() == ZEROS for text in ax.texts) else -0.3
    ax.set_xlim(least, 3 * max(1, wide.to_numpy().max(), ax.get_xlim()[1] / 3))


def shares_by_arm(
    ax: Axes, table: pd.DataFrame, value: str, label: str, *, color: str, marker: str = "o", shift: float = 0.0
) -> None:
    """The same for shares, in per cent on an even axis, with their mean as a bar; what is NaN is left out."""
    wide = table.pivot_table(index="arm", columns="seed", values=value, sort=False, dropna=False)
    _paired_dots(ax, wide, wide.mean(axis=1), label, color, marker, shift)
    ax.set_xlim(-0.03, 1.03)
    ax.xaxis.set_major_formatter(PercentFormatter(1))


def _paired_dots(ax, wide, middle, label, color, marker, shift):
    """Draw the points and return the height of each arm's row, `[arms]`."""
    places, heights = _rows_of_arms(ax, list(wide.index))
    heights = heights + shift
    zeros, room = wide.eq(0), 1.8 * abs(shift) or 0.8  # of rows that are 1 apart: nobody's points reach another's
    apart = np.minimum(0.1, room / np.maximum(zeros.sum(axis=1) - 1, 1)).to_numpy()[:, None]
    spread = np.where(zeros, apart * zeros.cumsum(axis=1).sub((zeros.sum(axis=1) + 1) / 2, axis=0), 0)
    for column, seed in enumerate(wide):
        [line] = ax.plot(wide[seed], heights + spread[:, column], marker, color=color, ms=4, alpha=0.5)
        say_points(line, (f"{arm}, seed {seed}, {label}: {number(count)}" for arm, count in wide[seed].items()))
    [bar] = ax.plot(middle, heights, "|", color=color, ms=9, mew=2.2, label=label)
    say_points(bar, (f"{arm}, mean, {label}: {number(count)}" for arm, count in middle.items()))
    ax.set_ylim(places - 0.5, -0.5)
    return heights


def _rows_of_arms(ax, names):
    """Name the rows of arms under their headings; returns how many rows there are and the height of each arm's."""
    ticks, heights, under = [], [], ""
    for heading, name in under_headings(names):
        if heading != under:
            ticks.append((heading, True))  # or a free row, where a group ends
        heights.append(len(ticks))
        ticks.append((name, False))
        under = heading
    grid, figure = ax.get_subplotspec().get_gridspec(), ax.figure
    # so that no name hides the next
    figure.set_figheight(max(figure.get_figheight(), grid.nrows * (1.2 + 0.2 * len(ticks))))
    ax.set_yticks(range(len(ticks)), [name for name, _ in ticks])
    for tick, (_, heading) in zip(ax.yaxis.get_major_ticks(), ticks, strict=True):
        if heading:  # made invisible, it would give the spine another extent, now and then
            tick.tick1line.set_marker("None")
        tick.label1.set_fontweight("bold" if heading else "normal")
        tick.label1.set_visible(ax.get_subplotspec().is_first_col())
    return len(ticks), np.array(heights)


def under_headings(names: Sequence[str]) -> list[tuple[str, str]]:
    """The heading, empty if there is none, and the shorter name of each arm.

    Names have parts, between commas. Neighbours that share their last part stand under it, else those that share
    their first part. A larger group wins over a smaller one.
    """
    groups = []
    for part, rest in ((-1, slice(None, -1)), (0, slice(1, None))):
        shared = [name.split(", ")[part] if ", " in name else None for name in names]
        start = 0
        for heading, run in itertools.groupby(shared):
            size = len(list(run))
            if heading is not None and size > 1:
                groups.append((size, range(start, start + size), heading, rest))
            start += size
    told = [("", name) for name in names]
    for _, places, heading, rest in sorted(groups, key=lambda group: -group[0]):
        free = [place for place in places if not told[place][0]]
        for place in free if len(free) > 1 else ():
            told[place] = (heading, ", ".join(names[place].split(", ")[rest]))
    return told


def ranking(ax: Axes, values: pd.DataFrame, colors: Sequence[str], reference: float) -> None:
    """A line for each column, the first on top: a point a row, the mean, and a dashed line at `reference`."""
    for place, (name, color) in enumerate(zip(values, colors, strict=True)):
        [line] = ax.plot(values[name], np.full(len(values), place), "o", color=color, ms=3, alpha=0.5)
        say_points(line, (f"{name}: {number(value)}" for value in values[name]))
        [mean] = ax.plot(values[name].mean(), place, "o", color=color, ms=7)
        say_points(mean, [f"{name}, mean: {number(values[name].mean())}"])
    ax.axvline(reference, color="0.5", lw=1, ls="--")
    ax.set_yticks(np.arange(values.shape[1]), values.columns, fontsize=8)
    ax.set_ylim(values.shape[1] - 0.5, -0.5)
    ax.grid(axis="y", color="0.92")


def shares(ax: Axes, table: pd.DataFrame, beside: pd.Series | None = None) -> None:
    """Shares as coloured cells with their percentages; rows from the top, columns from the left; NaN is left blank.

    `beside`: a number for each row, in a last column without colour.
    """
    if beside is not None:
        for row, number in enumerate(beside):
            ax.text(table.shape[1], row, f"{number:,.0f}", ha="center", va="center", fontsize=7)
        table = table.assign(**{beside.name: np.nan})
    ax.imshow(table, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for (row, column), share in np.ndenumerate(table.to_numpy()):
        if np.isnan(share):
            continue
        text = f"{100 * share:.{0 if share == 0 or share >= 0.01 else 2}f}"
        ax.text(column, row, text, ha="center", va="center", fontsize=7, color="w" if share > 0.6 else "k")
    ax.set_xticks(np.arange(table.shape[1]), table.columns, fontsize=8)
    ax.set_yticks(np.arange(len(table)), table.index, fontsize=8)
    ax.tick_params(length=0)


def not_counted(figure: Figure, note: str) -> Figure:
    """The figure with a note over it. Neither a panel nor the caption says any more that its numbers were counted."""
    for ax in figure.axes:
        title = ax.get_title(loc="left").replace("counted exactly", "sampled")
        ax.set_title(title, fontsize=10, loc="left", fontweight="bold")
    _caption(figure, re.sub(r"counted\s+(exactly|over\s+the\s+whole\s+space)", "sampled", figure.get_supxlabel()))
    figure.suptitle(note, fontsize=10, color="C3")
    return figure


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
    ax.yaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5)))
    ax.yaxis.set_major_formatter("{x:g}")
    legend_below(ax)


def save(figure: Figure, path: Path) -> None:
    """Write a figure, whole or not at all, in the format of the name's ending (one of `FORMATS`)."""
    write_atomically(path, drawn(figure, path.suffix[1:]))


def drawn(figure: Figure, form: str, transparent: bool = False) -> bytes:
    """A figure as a file of one of `FORMATS`; the same figure is the same bytes."""
    data = io.BytesIO()
    with matplotlib.rc_context({"svg.hashsalt": "testbed", "svg.fonttype": "none"}):
        figure.savefig(data, format=form, dpi=150, metadata=UNDATED[form], transparent=transparent)
    return data.getvalue()
