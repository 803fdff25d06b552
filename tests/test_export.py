"""Tables as files: the same numbers in every format; a missing package is told before any work."""

import io
import sys

import pandas as pd
import pytest
from synthetic import table

from experiments import Contrast, export
from experiments.effects import of_contrasts

RUNS = table("injury", {"1 round": [99, 9], "16_rounds": [9, 0]})
EFFECTS = of_contrasts(RUNS, [Contrast("1 round", "16_rounds")])


@pytest.mark.parametrize(("form", "package"), [(form, package) for form, (package, _) in export.FORMATS.items()])
def test_a_format_without_its_package_is_refused_in_one_line(form, package, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ValueError, match=rf"^{package} is not installed; python -m pip install -e '\.\[data\]'"):
        export.refuse_missing(form)


@pytest.mark.slow
def test_parquet_holds_the_numbers_of_the_table():
    pytest.importorskip("pyarrow")
    runs = RUNS.assign(prompt=[[1, 2]] * 4, mixed=[1, "18446744073709551616", None, 2.5])
    files = export.as_files("parquet", runs, EFFECTS)
    back = pd.read_parquet(io.BytesIO(files["runs.parquet"]))
    assert "prompt" not in back and back["greedy.exact.failures"].tolist() == [99, 9, 9, 0]
    assert back["mixed"].fillna("").tolist() == ["1", "18446744073709551616", "", "2.5"]
    pd.testing.assert_frame_equal(pd.read_parquet(io.BytesIO(files["effects.parquet"])), EFFECTS)


@pytest.mark.slow
def test_latex_escapes_names_and_shows_what_the_terminal_shows():
    pytest.importorskip("jinja2")
    text = export.as_files("tex", RUNS, EFFECTS)["effects.tex"].decode()
    assert text.startswith("\\begin{tabular}") and "16\\_rounds" in text and "\\toprule" in text
    assert text.count("\\\\\n") == 1 + len(EFFECTS)
