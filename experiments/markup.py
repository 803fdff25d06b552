"""Markup: the pieces of HTML that a report is made of. All text and every attribute is escaped here."""

import html
import re
from collections.abc import Iterable, Sequence
from typing import Any

import pandas as pd

NUMBER = re.compile(r"([-+]?[\d,]*\.?\d+(?:e[-+]?\d+)?)k?(?!\w|[.,]\d)")  # at the beginning of a cell


def text(value: Any) -> str:
    """A value as HTML text or attribute."""
    return html.escape(str(value), quote=True)


def prose(value: str) -> str:
    """Text as HTML, with what stands between backticks as code."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", text(value))


def element(tag: str, inside: str = "", **attributes: Any) -> str:
    """An HTML element; `inside` is HTML already, attributes are escaped here."""
    names = ((name.rstrip("_").replace("_", "-"), value) for name, value in attributes.items())
    given = "".join(f' {name}="{text(value)}"' for name, value in names)
    return f"<{tag}{given}>{inside}</{tag}>"


def scrolling(table: str) -> str:
    """A table that scrolls by itself where the page is narrow."""
    return element("div", table, class_="scroll")


def head_of(names: Sequence[str]) -> str:
    """A table's head; a column is sorted by the button of its name."""
    inside = (element("button", text(name), type="button") if name else text(name) for name in names)
    return element("thead", element("tr", "".join(element("th", cell, scope="col") for cell in inside)))


def row_of(cells: Sequence[str], keys: Sequence[Any]) -> str:
    """A row of cells (HTML), each with the value that it is sorted by; None is missing."""
    made = []
    for place, (cell, key) in enumerate(zip(cells, keys, strict=True)):
        given = {"scope": "row"} if place == 0 else {}
        given |= {"class_": "words"} if isinstance(key, str) else {}  # numbers are never broken over lines
        given |= {} if key is None else {"data_value": key}
        made.append(element("th" if place == 0 else "td", cell, **given))
    return element("tr", "".join(made))


def sort_keys(cells: Iterable[str]) -> list[float | str | None]:
    """What a column of typeset cells is sorted by: the number that each begins with, else its words.

    A cell that is empty or `-` is missing.
    """
    shown = [cell.strip() for cell in cells]
    missing = [cell in ("", "-") for cell in shown]
    found = [NUMBER.match(cell) for cell in shown]
    if all(match or gone for match, gone in zip(found, missing, strict=True)):
        numbers = (float(match[1].replace(",", "")) if match else None for match in found)
        return [None if gone else value for value, gone in zip(numbers, missing, strict=True)]
    return [None if gone else cell for cell, gone in zip(shown, missing, strict=True)]


def table_of(shown: pd.DataFrame) -> str:
    """A table of text that sorts."""
    keys = [[str(name) for name in shown.index], *(sort_keys(shown[column].astype(str)) for column in shown)]
    cells = [[text(name) for name in shown.index], *([text(cell) for cell in shown[column]] for column in shown)]
    rows = [row_of(row, key) for row, key in zip(zip(*cells, strict=True), zip(*keys, strict=True), strict=True)]
    head = head_of([shown.index.name or "", *map(str, shown.columns)])
    return element("table", head + element("tbody", "\n".join(rows)), class_="sortable")
