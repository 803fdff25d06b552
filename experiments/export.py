"""Tables as files: CSV beside every sweep; parquet and LaTeX if they are asked for, by the extra `data`."""

import io
from collections.abc import Callable

import pandas as pd

from experiments.tables import effects_text
from experiments.verdict import Verdict
from testbed.outside import extra_package

VERDICT = "verdict.csv"  # beside the records of a question that is registered


def csv_of_verdict(question: str, verdict: Verdict) -> bytes:
    """A verdict in one row: on how many of how many runs it was judged, and under which protocol."""
    standing = verdict.standing
    row = {"question": question, "outcome": verdict.outcome, "standing": standing.kind}
    row |= {"made": standing.made, "asked": standing.asked, "protocol": standing.digest}
    return pd.DataFrame([row]).to_csv(index=False).encode()


def csv_of_effects(effects: pd.DataFrame) -> bytes:
    """Effects as numbers, a row a contrast and task; what is typeset stays out."""
    return effects.to_csv(index=False, float_format="%.6g").encode()


def csv_of_runs(runs: pd.DataFrame) -> bytes:
    """Runs as numbers and names, a row a run; lists, as of prompts, stay in the records."""
    return plain_columns(runs).to_csv(index=False).encode()


def plain_columns(runs: pd.DataFrame) -> pd.DataFrame:
    """Runs without the columns that hold lists or dicts; first what names a run."""
    several = [column for column in runs if runs[column].map(lambda value: isinstance(value, list | dict)).any()]
    rest = runs.drop(columns=several)
    first = [column for column in ("run", "task", "arm", "seed") if column in rest]
    return rest[[*first, *(column for column in rest if column not in first)]]


def parquet(table: pd.DataFrame) -> bytes:
    """A table as parquet; a column whose values are of several kinds holds their text."""
    objects = [column for column in table if table[column].dtype == object]
    mixed = [column for column in objects if table[column].dropna().map(type).nunique() > 1]
    table = table.assign(**{c: table[c].map(str, na_action="ignore") for c in mixed})
    return table.to_parquet(None, index=False)


def latex(effects: pd.DataFrame) -> bytes:
    """Effects as LaTeX's `tabular`, typeset as the terminal shows them."""
    out = io.StringIO()
    style = effects_text(effects).style.hide(axis="index").format(escape="latex")
    style.format_index(escape="latex", axis="columns").to_latex(out, hrules=True)
    return out.getvalue().encode()


# Each further format of tables: the package that it needs, and its files by name from runs and effects.
FORMATS: dict[str, tuple[str, Callable[[pd.DataFrame, pd.DataFrame], dict[str, bytes]]]] = {
    "parquet": (
        "pyarrow",
        lambda runs, effects: {"runs.parquet": parquet(plain_columns(runs)), "effects.parquet": parquet(effects)},
    ),
    "tex": ("jinja2", lambda runs, effects: {"effects.tex": latex(effects)}),
}


def refuse_missing(form: str) -> None:
    """Say before any work that a format of tables needs a package.

    Raises:
      ValueError: it is not installed; names the extra that brings it.
    """
    if form in FORMATS:
        extra_package(FORMATS[form][0], "data")


def as_files(form: str, runs: pd.DataFrame, effects: pd.DataFrame) -> dict[str, bytes]:
    """The files of a format of `FORMATS`, by name.

    Raises:
      ValueError: as `refuse_missing`.
    """
    refuse_missing(form)
    return FORMATS[form][1](runs, effects)
