"""Named columns of a table of runs: the one place that knows how records are laid out."""

from collections.abc import Sequence
from functools import reduce
from typing import Any

import numpy as np
import pandas as pd

from testbed.training.defence import ACCESS

POLICIES = {"greedy": "threshold 0", "matched": "threshold at 1 % clean false alarms"}
COUNTED = {
    "failures": "failing prompts",
    "egregious": "egregious failures",
    "planted": "planted failures",
    "natural": "failures that nobody planted",
    "false_alarms": "safe prompts refused",
}
WHOLE = {"failures": "hazardous", "egregious": "hazardous", "false_alarms": "safe"}  # what these are counted among
PAIRING = ["task", "arm", "seed"]


def task_of(record: dict[str, Any]) -> str:
    """The task of a record of any format; empty if it names none."""
    config = record["config"]
    plain = config.get("plain")
    task = record.get("task") or (plain.get("task") if isinstance(plain, dict) else config.get("task"))
    return task if isinstance(task, str) else ""


def tidy(runs: pd.DataFrame) -> pd.DataFrame:
    """A table of runs with columns `task` and `arm`, as records of any format name them.

    Where a space is too large to count, sampled numbers also stand where counted ones are looked
    for; `sampled_note` says so.
    """
    task = _first_of(runs, "task", "config.plain.task", "config.task")
    arm = _first_of(runs, "arm", "experiment")  # records of a question with a single arm did not name it
    return _as_counted(_as_numbers(runs.assign(task=task, arm=arm)))


def _first_of(runs: pd.DataFrame, *named: str) -> pd.Series:
    """Of each run the first of the columns that it has."""
    [first, *others] = [runs[c] for c in named if c in runs] or [pd.Series("", index=runs.index)]
    return reduce(pd.Series.fillna, others, first)


def _as_numbers(runs: pd.DataFrame) -> pd.DataFrame:
    """Counts beyond 2**53, which are text in records, as floats; a checksum is no count."""
    counted = [c for c in runs if "exact" in c.split(".") and not c.endswith(".checksum")]
    texts = [c for c in counted if runs[c].map(lambda value: isinstance(value, str)).any()]
    return runs.assign(**{c: runs[c].astype(float) for c in texts})


def _as_counted(runs: pd.DataFrame) -> pd.DataFrame:
    for column in [c for c in runs if "sampled" in c.split(".")]:
        counted = column.replace("sampled.", "exact.")
        runs[counted] = runs[counted].fillna(runs[column]) if counted in runs else runs[column]
    clean = column_of("clean_failure")
    return runs if clean in runs else runs.assign(**{clean: np.nan})


def column_of(of: str, policy: str = "greedy") -> str:
    """The column of an exact count, or of another number of the whole space."""
    return f"{policy}.exact.{of}"


def counts(runs: pd.DataFrame, of: str = "failures", policy: str = "greedy") -> pd.Series:
    """A number of the whole space a run: `COUNTED`, `hazardous`, `safe`, `clean_failure`, ..."""
    return runs[column_of(of, policy)].astype(float)


def whole(value: Any) -> Any:
    """A count of one record: records hold integers beyond 2**53 as text."""
    return int(value) if isinstance(value, str) else value


def failures(runs: pd.DataFrame, policy: str = "greedy") -> pd.Series:
    """Failing prompts a run, at threshold 0 or at matched clean false alarms."""
    return counts(runs, "failures", policy)


def worst_margin(runs: pd.DataFrame) -> pd.Series:
    """The worst margin a run, in steps of the threshold: how far it moves until 1 % of safe clean prompts are refused.

    So models compare whose logits have other scales. NaN where as many are refused at threshold 0, and where no
    margins were measured.
    """
    if not {"matched.tau", column_of("worst_margin")} <= set(runs):
        return pd.Series(np.nan, runs.index)
    step = -runs["matched.tau"].astype(float)
    return counts(runs, "worst_margin") / step.where(step > 0)


def refused_share(runs: pd.DataFrame, policy: str = "greedy") -> pd.Series:
    """The share of all safe prompts that a run's model refuses."""
    return counts(runs, "false_alarms", policy) / counts(runs, "safe")


def clean(runs: pd.DataFrame, of: str) -> pd.Series:
    """A count over clean samples: samples, correct, safe, false_alarms, failures."""
    return runs[f"greedy.clean.{of}"].astype(float)


def clean_accuracy(runs: pd.DataFrame) -> pd.Series:
    """The share of right answers to clean prompts."""
    return clean(runs, "correct") / clean(runs, "samples")


def setting(runs: pd.DataFrame, name: str) -> pd.Series:
    """A field of each run's config, by its dotted name (`rounds`, `plain.width`)."""
    return runs[f"config.{name}"]


def is_account(runs: pd.DataFrame) -> bool:
    """Whether runs hold the usual account of an arm: what `tables.by_row` shows."""
    return {column_of("failures"), "greedy.clean.samples", "compute.forwards"} <= set(runs)


def spent(runs: pd.DataFrame, of: str = "forwards") -> pd.Series:
    """What a run's defence spent: forwards, gradient_steps, finds, labels, ..."""
    return runs[f"compute.{of}"]


def labelled(runs: pd.DataFrame) -> bool:
    """Whether every run says how many labels its defence used: records of the first round do not."""
    return "compute.labels" in runs and bool(runs["compute.labels"].notna().all())


def judged(runs: pd.DataFrame) -> pd.Series:
    """Prompts that the checker judged for a defence, clean batches apart: those labelled, and verdicts asked for."""
    return spent(runs, "labels") + spent(runs, "checker_calls")


def decades(counts: Any) -> Any:
    """log10(count + 1): zero failures are zero decades."""
    return np.log10(counts + 1)


def typical(counts: pd.Series | pd.DataFrame, axis: int = 0) -> Any:
    """The count whose decades are the mean: 10 ** mean(log10(count + 1)) - 1."""
    return 10 ** decades(counts).mean(axis=axis) - 1


def by_task(runs: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """The runs of each task, in order of appearance."""
    return dict(list(runs.groupby("task", sort=False)))


def wide(runs: pd.DataFrame, values: pd.Series) -> pd.DataFrame:
    """`[seed, arm]`: one value a run, from the runs of one task."""
    return runs.assign(value=values).pivot(index="seed", columns="arm", values="value")


def is_sampled(runs: pd.DataFrame) -> pd.Series:
    """Whether a run's failures were sampled, since its space was too large to count."""
    sizes = [c for c in runs if c.endswith("sampled.hazardous")]
    return runs[sizes].notna().any(axis=1)


def sampled_note(runs: pd.DataFrame) -> str:
    """What must be said of a task whose space is too large to count; else nothing. It names the arms, if not all."""
    sizes = [c for c in runs if c.endswith("sampled.hazardous") and runs[c].notna().any()]
    if not sizes:
        return ""
    of, every = runs.loc[is_sampled(runs), "arm"].unique(), is_sampled(runs).all()
    whose = "" if every else f" (those of {', '.join(of)}; the others are counted)"
    return f"sampled: failing prompts of {runs[sizes[0]].max():,.0f} random hazards{whose}"


def limit_note(runs: pd.DataFrame) -> str:
    """What must be said of defences that are given all failures of the model, by what gives them; else nothing."""
    if "access" not in runs:  # records of the first round, which had none
        return ""
    given = runs["access"].fillna("").str.split(", ").map(lambda names: "failures" in names)
    sources = ", ".join(dict.fromkeys(runs.loc[given, "config.attack"]))
    return sources and f"{sources} draws from {ACCESS['failures']}"


def attacked(runs: pd.DataFrame) -> list[str]:
    """The attacks of an evaluation, by name."""
    found = (c for c in runs if c.startswith("attacks.") and c.endswith(".attackers"))
    return sorted(c.split(".")[1] for c in found)


def budgets(runs: pd.DataFrame, attack: str) -> list[int]:
    """The budgets at which an attack's successes were counted, ascending."""
    within = (c for c in runs if c.startswith(f"attacks.{attack}.within."))
    return sorted(int(c.rsplit(".", 1)[1]) for c in within)


def attackers(runs: pd.DataFrame, attack: str) -> pd.Series:
    """How many attackers an evaluation had."""
    return runs[f"attacks.{attack}.attackers"]


def successes(runs: pd.DataFrame, attack: str, budget: int) -> pd.Series:
    """How many of them succeeded within a budget."""
    return runs[f"attacks.{attack}.within.{budget}"]


def existing(runs: pd.DataFrame, arms: Sequence[str]) -> list[str]:
    """Those of the arms that the runs hold."""
    there = set(runs["arm"])
    return [arm for arm in arms if arm in there]
