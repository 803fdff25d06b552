"""Tables on a terminal: nothing is cut, whatever its width."""

import io
import math

import pandas as pd
import pytest
from rich.console import Console

from experiments.tables import blocks, show_text, with_interval

WORDS = {f"column {n}": [f"{n}1,234,567 (1..99,999,99{n})", f"{n}.5%"] for n in range(7)}
LONG = pd.DataFrame(WORDS, index=["rounds=16, budget=190, learning_rate=0.0005", "plain"])


@pytest.mark.parametrize("width", [60, 80, 100, 120, 200, 400])
def test_no_cell_is_cut_and_no_line_is_too_long(width):
    out = io.StringIO()
    show_text(Console(file=out, width=width), LONG, "a title")
    lines = out.getvalue().splitlines()
    assert max(map(len, lines)) <= width and "…" not in out.getvalue()
    shown = out.getvalue().split()
    for column, cells in WORDS.items():
        for word in (*column.split(), *(word for cell in cells for word in cell.split())):
            assert word in shown, f"{word} is cut at {width} columns"


def test_every_column_stands_in_one_block_in_order():
    for width in (60, 80, 200):
        assert [column for part in blocks(LONG, width) for column in part] == list(LONG)
    assert len(blocks(LONG, 60)) > len(blocks(LONG, 120)) >= len(blocks(LONG, 400)) == 1


def test_a_table_that_fits_keeps_its_cells_on_one_line():
    out = io.StringIO()
    show_text(Console(file=out, width=400), LONG, "a title")
    assert len(out.getvalue().splitlines()) == 1 + 3 + 2 + 1


def test_a_number_has_its_interval_if_it_has_one():
    assert with_interval(1.0, 0.5, 1.5, "decades") == "1.00 [0.50, 1.50]"
    assert with_interval(0.25, 0.1, 0.5, "share") == "25.0 % [10.0 %, 50.0 %]"
    assert with_interval(1.0, -math.inf, math.inf, "decades") == "1.00", "one seed bounds nothing"
    assert with_interval(math.nan, math.nan, math.nan, "decades") == "-"
