"""The forest plot of a report: a row a contrast and task, with the intervals of both thresholds drawn."""

import math
from collections.abc import Callable

import numpy as np
import pandas as pd

from experiments import tables
from experiments.markup import element, head_of, prose, row_of, scrolling, text

FOREST = (260, 30)  # width and height of a drawn interval, in units of its own
MARGIN = 20  # left and right: room for half a tick's label


def forests(effects: pd.DataFrame) -> str:
    """The section of effects: declared ones first, a plot for each unit, since an axis has one."""
    shown = tables.effects_text(effects)
    parts = [element("h2", "Effects"), element("p", prose(f"An effect is {tables.SIGN}."))]
    legend = mark(8, 8, "zero") + '<text x="18" y="12">threshold 0</text>'
    legend += mark(108, 8, "matched") + '<text x="118" y="12">at 1 % clean false alarms</text>'
    parts.append(element("svg", legend, viewBox="0 0 280 16", class_="legend", aria_hidden="true"))
    for declared, title in ((True, "Declared before the runs"), (False, "Exploratory")):
        for unit in dict.fromkeys(effects["unit"]):
            chosen = (effects["declared"] == declared) & (effects["unit"] == unit)
            if chosen.any():
                name = title if unit == "decades" else f"{title}, {unit}"
                parts.append(element("h3", text(name)) + _forest(effects[chosen], shown[chosen.to_numpy()], unit))
    return "\n".join(parts)


def _forest(effects: pd.DataFrame, shown: pd.DataFrame, unit: str) -> str:
    ends = effects[["effect", "low", "high", "matched", "matched_low", "matched_high"]].to_numpy(float)
    ends = np.append(ends[np.isfinite(ends)], 0)
    ticks = even_ticks(ends.min(), ends.max())
    scale = scale_over(ticks[0], ticks[-1], FOREST[0])
    rows = []
    for (_, numbers), (_, words) in zip(effects.iterrows(), shown.iterrows(), strict=True):
        drawn = _interval(scale, numbers, words)
        arrow = " → ".join(filter(None, (words["before"], words["after"])))
        cells = [words["task"], arrow, words["counted"], words["threshold 0"], words["matched"], words["n"]]
        keys = [words["task"], arrow, words["counted"], finite(numbers["effect"]), finite(numbers["matched"])]
        keys += [finite(numbers["n"]), finite(numbers["p"]), finite(numbers["effect"])]
        rows.append(row_of([*map(text, cells), text(words["p (Holm)"]), drawn], keys))
    head = head_of(["task", "contrast", "counted", "threshold 0", "matched", "n", "p (Holm)", "interval"])
    label = lambda tick: text(tables.typeset(tick, unit, ticks[1] - ticks[0]))
    axis = "".join(
        f'<line x1="{scale(tick):.1f}" x2="{scale(tick):.1f}" y1="0" y2="4"/>'
        f'<text x="{scale(tick):.1f}" y="15" text-anchor="middle">{label(tick)}</text>'
        for tick in ticks
    )
    axis = element("svg", axis, viewBox=f"0 0 {FOREST[0]} 18", class_="axis", aria_hidden="true")
    foot = element("tfoot", element("tr", element("td", "", colspan=7) + element("td", axis)))
    return scrolling(element("table", head + element("tbody", "\n".join(rows)) + foot, class_="sortable forest"))


def scale_over(low: float, high: float, width: int) -> Callable[[float], float]:
    """From a value to its place in a drawing of this width, between the margins."""
    per_unit = (width - 2 * MARGIN) / ((high - low) or 1)
    return lambda value: MARGIN + (value - low) * per_unit


def even_ticks(low: float, high: float, most: int = 5) -> list[float]:
    """At most `most` even steps of 1, 2 or 5 times a power of ten, from below `low` to above `high`."""
    high = high if high > low else low + 1
    span = high - low
    size = 10 ** math.floor(math.log10(span / most))
    step = next(size * times for times in (1, 2, 5, 10, 20) if span / (size * times) <= most - 1)
    return [round(step * place, 12) for place in range(math.floor(low / step), math.ceil(high / step) + 1)]


def _interval(scale: Callable[[float], float], numbers: pd.Series, words: pd.Series) -> str:
    inside = f'<line class="nothing" x1="{scale(0):.1f}" x2="{scale(0):.1f}" y1="0" y2="{FOREST[1]}"/>'
    names = (("zero", "effect", "", "threshold 0", 10), ("matched", "matched", "matched_", "matched", 20))
    said = []
    for kind, value, prefix, title, y in names:
        if not math.isfinite(numbers[value]):
            continue
        low, high = numbers[f"{prefix}low"], numbers[f"{prefix}high"]
        said.append(f"{title}: {words[title]}")
        if math.isfinite(low) and math.isfinite(high):
            inside += f'<line class="{kind}" x1="{scale(low):.1f}" x2="{scale(high):.1f}" y1="{y}" y2="{y}"/>'
        inside += mark(scale(numbers[value]), y, kind, said[-1])
    size = f"0 0 {FOREST[0]} {FOREST[1]}"
    return element("svg", inside, viewBox=size, class_="interval", role="img", aria_label="; ".join(said))


def mark(x: float, y: float, kind: str, tip: str = "") -> str:
    """A disc of threshold 0, or a square of the matched one."""
    tips = f' data-tip="{text(tip)}"' if tip else ""
    if kind == "zero":
        return f'<circle class="zero" cx="{x:.1f}" cy="{y}" r="4"{tips}/>'
    return f'<rect class="matched" x="{x - 3.5:.1f}" y="{y - 3.5}" width="7" height="7"{tips}/>'


def finite(value: float) -> float | None:
    """A number to sort by; None where it is not known or endless."""
    return float(value) if math.isfinite(value) else None
