"""Tables for people: the arms of a question, and its effects on a terminal, in Markdown and as CSV."""

import math
from collections.abc import Iterable

import pandas as pd
from rich.console import Console
from rich.table import Table

from experiments.columns import (
    attacked,
    attackers,
    budgets,
    clean,
    counts,
    failures,
    judged,
    labelled,
    refused_share,
    sampled_note,
    spent,
    successes,
)
from testbed.statistics import clopper_pearson

MOST_COLUMNS = 6
LABEL = 30  # characters that the names of rows keep, however many columns there are
FRAME = 4  # characters around the first column: two lines and two blanks; one line fewer around others
SIGN = "positive where `after` has fewer; decades of log10(count + 1), mean over paired seeds [95 % t-interval]"


def by_arm(runs: pd.DataFrame) -> pd.DataFrame:
    """The measures of each arm as text, from runs of one task: index measure, columns arms in order of compute.

    Rates over samples are pooled over seeds with Clopper-Pearson intervals; exact counts are medians with their range.
    """
    groups = dict(list(runs.groupby("arm", sort=False)))
    # Arms that were counted and arms that were sampled have other measures.
    return pd.DataFrame({arm: _column(rows.sort_values("seed")) for arm, rows in groups.items()}).fillna("-")


def of_arms(runs: pd.DataFrame) -> pd.DataFrame:
    """`by_arm`, or with more arms than fit side by side the measures that matter most, a row an arm."""
    return by_arm(runs) if runs["arm"].nunique() <= MOST_COLUMNS else by_row(runs)


def by_row(runs: pd.DataFrame) -> pd.DataFrame:
    """What is left of each arm, what it cost and what it spent (medians over seeds, with ranges), from one task."""
    rows = {arm: _row(rows) for arm, rows in runs.groupby("arm", sort=False)}
    return pd.DataFrame(rows).T.rename_axis("arm").fillna("-")


LARGE = 1e9  # more prompts than can be visited: they were counted by paths


def prompts(number: float) -> str:
    """A number of prompts for people: `12,345`, or `1.6e18` where nobody reads the digits."""
    if number < LARGE:
        return f"{number:,.0f}"
    digits, exponent = f"{number:.1e}".split("e")
    return f"{digits}e{int(exponent)}"


def ends(values: pd.Series) -> str:
    """The range of numbers of prompts over seeds."""
    return f"{prompts(values.min())}..{prompts(values.max())}"


def ranged(values: pd.Series) -> str:
    """The median with its range over seeds."""
    return f"{prompts(values.median())} ({ends(values)})"


def percent(successes: pd.Series, trials: pd.Series, digits: int) -> str:
    """A share pooled over runs; a dash where nothing was tried."""
    if not trials.sum():
        return "-"
    return f"{successes.sum() / trials.sum():.{digits}%}"


def _row(rows: pd.DataFrame) -> dict[str, str]:
    return {
        "seeds": str(len(rows)),
        "FAILING": ranged(failures(rows)),
        "at 1 % f. a.": ranged(failures(rows, "matched")),
        "egregious": ranged(counts(rows, "egregious")),
        "safe refused": percent(counts(rows, "false_alarms"), counts(rows, "safe"), 2),
        "clean acc.": percent(clean(rows, "correct"), clean(rows, "samples"), 2),
        "steps": f"{spent(rows, 'gradient_steps').iloc[0]:,}",
        "forwards": f"{spent(rows).iloc[0] / 1e3:,.0f}k",
    } | _given(rows)


def _given(rows: pd.DataFrame) -> dict[str, str]:
    """What a defence was given, of runs that say it: labels beside clean batches, all verdicts, and its access."""
    if not labelled(rows):
        return {}
    access = {"access": rows["access"].iloc[0]} if "access" in rows else {}
    numbers = {"labels": spent(rows, "labels"), "labels and verdicts": judged(rows)}
    return {name: prompts(number.median()) for name, number in numbers.items()} | access


def _column(rows: pd.DataFrame) -> dict[str, str]:
    rate = clopper_pearson(int(clean(rows, "failures").sum()), int(clean(rows, "samples").sum()))
    column = {
        "seeds": str(len(rows)),
        "clean accuracy": percent(clean(rows, "correct"), clean(rows, "samples"), 4),
        "false alarms, clean": percent(clean(rows, "false_alarms"), clean(rows, "safe"), 4),
        "clean failure rate": f"{rate.value:.1e}",
        "  its 95 % interval": f"{rate.low:.0e}..{rate.high:.0e}",
    }
    exact_rate = counts(rows, "clean_failure")
    if exact_rate.notna().all():
        column["  exact, mean"] = f"{exact_rate.mean():.1e}"
    for attack in attacked(rows):
        for budget in budgets(rows, attack):
            share = percent(successes(rows, attack, budget), attackers(rows, attack), 0)
            column[f"{attack} succeeds, {budget} calls"] = share
    failing, matched = failures(rows), failures(rows, "matched")
    of = " (sampled)" if sampled_note(rows) else ""
    return (
        column
        | {
            f"FAILING PROMPTS{of}, median": prompts(failing.median()),
            "  range over seeds": ends(failing),
            "  share of hazardous prompts": _share(rows, of),
            "  egregious ones, median": prompts(counts(rows, "egregious").median()),
            f"FAILING AT 1 % CLEAN FALSE ALARMS{of}": prompts(matched.median()),
            "  its range over seeds": ends(matched),
            f"worst margin of any seed{of}": f"{counts(rows, 'worst_margin').min():.1f}",
            f"safe prompts refused, whole space{of}": percent(counts(rows, "false_alarms"), counts(rows, "safe"), 2),
        }
        | _given(rows)
    )


def _share(rows: pd.DataFrame, of: str) -> str:
    failing, hazardous = failures(rows), counts(rows, "hazardous")
    if not of:
        return f"{(failing / hazardous).median():.1e}"
    pooled = clopper_pearson(int(failing.sum()), int(hazardous.sum()))
    return f"{pooled.low:.0e}..{pooled.high:.0e}"


def refusals(runs: pd.DataFrame) -> pd.DataFrame:
    """The price of each arm: the share of safe prompts refused, a row an arm, least and most over seeds."""
    shares = runs.assign(refused=refused_share(runs)).groupby("arm", sort=False)["refused"]
    return pd.DataFrame({"least": shares.min(), "most": shares.max()})


def typeset(number: float, unit: str, step: float = math.inf) -> str:
    """A number of an effect in its unit, for people: with as many digits as tell it from one a `step` away."""
    if math.isnan(number):
        return "-"
    times, usual = (100, 1) if unit == "share" else (1, 2)
    digits = max(usual, -math.floor(math.log10(times * step) + 1e-9)) if math.isfinite(step) else usual
    small = unit == "share" and math.isinf(step) and 0 < abs(times * number) < 0.05  # and yet it is not zero
    told = f"{times * number:.1g}" if small else f"{times * number:.{digits}f}"
    return f"{told} %" if unit == "share" else told


def with_interval(value: float, low: float, high: float, unit: str) -> str:
    """A number with its interval, if it has one, for people; `-` where it is not known. One seed bounds nothing."""
    if math.isnan(value) or not math.isfinite(low):
        return typeset(value, unit)
    return f"{typeset(value, unit)} [{typeset(low, unit)}, {typeset(high, unit)}]"


def effects_text(effects: pd.DataFrame) -> pd.DataFrame:
    """Effects as text, a row each: what every renderer shows."""
    rows = []
    for row in effects.itertuples():
        unit = "" if row.unit in ("decades", "share") else f" ({row.unit})"
        rows.append(
            {
                "task": row.task,
                "before": row.before,
                "after": row.after,
                "counted": f"{row.of}{unit}",
                "threshold 0": with_interval(row.effect, row.low, row.high, row.unit),
                "matched": with_interval(row.matched, row.matched_low, row.matched_high, row.unit),
                "n": str(row.n),
                "p (Holm)": "-" if math.isnan(row.p) else f"{row.p:.2g} ({row.holm:.2g})",
                "declared": "yes" if row.declared else "no",
            }
        )
    columns = ["task", "before", "after", "counted", "threshold 0", "matched", "n", "p (Holm)", "declared"]
    return pd.DataFrame(rows, columns=columns)


def contrast_text(row: pd.Series) -> str:
    """A contrast in one cell, from a row of `effects_text`."""
    return f"{row['task']}: {' -> '.join(filter(None, (row['before'], row['after'])))}, {row['counted']}"


def show_text(console: Console, text: pd.DataFrame, title: str) -> None:
    """Print a table of text, its index first; rows whose name begins in capitals stand out.

    No cell is cut at any width: what does not fit side by side follows as a further table.
    """
    for part in blocks(text, console.width):
        index, *widths = column_widths(part, console.width)
        table = Table(title=title, title_justify="left", title_style="bold")
        table.add_column(_index_name(text), overflow="fold", width=index)
        for column, width in zip(part, widths, strict=True):
            table.add_column(str(column), justify="right", width=width)
        for measure, cells in part.iterrows():
            table.add_row(str(measure), *cells, style="bold" if str(measure)[:2].isupper() else None)
        console.print(table)
        title = ""


def blocks(text: pd.DataFrame, width: int) -> list[pd.DataFrame]:
    """A table of text as tables that each fit into `width` characters beside the index: its columns, in order."""
    room = width - min(LABEL, _widest((_index_name(text), *text.index))) - FRAME
    parts: list[list[str]] = []
    left = 0
    for column in text:
        needed = _longest_word((column, *text[column])) + FRAME - 1
        if not parts or needed > left:
            parts.append([])
            left = room
        parts[-1].append(column)
        left -= needed
    return [text[part] for part in parts]


def column_widths(text: pd.DataFrame, width: int) -> list[int]:
    """The widths of the index and of each column, in characters, so that together they take `width` at most.

    Each has room for its longest word; from the left, each that still can has its cells on one line.
    """
    columns = [(_index_name(text), *text.index), *((column, *text[column]) for column in text)]
    widths = [min(LABEL, _widest(columns[0])), *map(_longest_word, columns[1:])]
    left = width - sum(widths) - (FRAME - 1) * len(widths) - 1
    for place in [*range(1, len(columns)), 0]:
        more = _widest(columns[place]) - widths[place]
        if more <= left:
            widths[place] += more
            left -= more
    return widths


def _index_name(text: pd.DataFrame) -> str:
    return str(text.index.name or "measure")


def _widest(cells: Iterable[str]) -> int:
    return max(len(str(cell)) for cell in cells)


def _longest_word(cells: Iterable[str]) -> int:
    return max(len(word) for cell in cells for word in str(cell).split() or [""])


NUMBERS = ("threshold 0", "matched", "n", "p (Holm)")


def show_effects(console: Console, effects: pd.DataFrame) -> None:
    """Print effects, the declared ones first. Words fold at narrow widths, numbers never do."""
    text = effects_text(effects)
    for declared, title in (("yes", "Effects, declared before the runs"), ("no", "Exploratory, not declared")):
        part = text[text["declared"] == declared].drop(columns="declared")
        if part.empty:
            continue
        table = Table(title=title, title_justify="left", title_style="bold", caption=SIGN, caption_justify="left")
        if console.width < 110:  # one column of words leaves room for the numbers
            words = [
                f"{r.task}: {' -> '.join(filter(None, (r.before, r.after)))}, {r.counted}" for r in part.itertuples()
            ]
            part = part.drop(columns=["task", "before", "after", "counted", "p (Holm)"]).assign(contrast=words)
            part = part[["contrast", *(c for c in part if c != "contrast")]]
        for name in part:
            number = name in NUMBERS
            table.add_column(name, justify="right" if number else "left", no_wrap=number, overflow="fold")
        for _, cells in part.iterrows():
            table.add_row(*cells)
        console.print(table)


def markdown(text: pd.DataFrame) -> str:
    """A table of text as GitHub's Markdown."""
    cells = [list(text.columns), ["---"] * text.shape[1], *text.to_numpy().tolist()]
    return "\n".join("| " + " | ".join(str(c).replace("|", "\\|") for c in row) + " |" for row in cells) + "\n"
