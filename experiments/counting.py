"""A large count, shared out: `--count=MODEL`. Any number of processes may help, here and on a cluster.

The count is a worklist of shares, each a run of its own with a record, and a copy of the model beside
them. So a helper is the same command on the same folder, wherever the folder is mounted and whatever
processor it has. A helper that is killed loses one share.
"""

import dataclasses
import functools
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import jax
from rich.console import Console
from rich.table import Table

from experiments.arm import added
from experiments.columns import whole
from experiments.evaluate import evaluation_of
from experiments.tables import prompts
from tasks import task_named
from testbed.evaluation import exact, shares
from testbed.evaluation.account import MATCHED
from testbed.evaluation.paths import walkable
from testbed.evaluation.walk import refuse_if_too_large, steps_of
from testbed.policy import Policy, conservative, greedy, matched_policy, stochastic
from testbed.runs import results
from testbed.runs.launchers.place import Place
from testbed.runs.models import digest_of, load, load_or_make, notes
from testbed.runs.provenance import source
from testbed.runs.sweep import Run, sweep
from testbed.task import Task, space_size
from testbed.text import plural
from testbed.watch import Watch

COUNT = "count"  # the name under which shares and whole counts are recorded


@dataclasses.dataclass(frozen=True)
class Counting:
    """A count of a saved model's failures on a task, or its share of a `number`, from 0.

    Attributes:
      task, weights: as of an `experiments.evaluate.Evaluation`.
      code: a digest of the code. Shares that other code has counted are of another count.
      largest: the steps that were allowed.
      number: which share; of the whole count -1.
    """

    task: str
    weights: str
    code: str
    largest: int
    number: int = added(-1)


def policies_of(task: Task, tau: float) -> dict[str, Policy]:
    """The policies under which failures are counted: those of `--evaluate`."""
    return {"greedy": greedy(task), "matched": conservative(task, tau), "sampled": stochastic(task)}


def counting_of(path: str, task: str | None, largest: int | None) -> Counting:
    """The count of the model saved at `path`, on `task` or the one that its notes name.

    Raises:
      ValueError: as `experiments.evaluate.evaluation_of`; the space is larger than `largest`; or the model is a
        machine that is counted by paths.
    """
    named = evaluation_of(path, task)
    model, task = load(path), task_named(named.task)
    if walkable(model, task):
        raise ValueError(f"{path} is a machine, counted by paths within seconds; give --evaluate={path}")
    refuse_if_too_large(task, largest=largest)
    # The limit that is kept is the space's own size: whatever else was allowed makes no other count.
    return Counting(named.task, named.weights, source(), steps_of(task))


def whole_of(config: Counting) -> Run:
    """The run that puts all shares together."""
    return Run(COUNT, dataclasses.replace(config, number=-1), 0, task=config.task)


def copy_of(config: Counting, folder: Path) -> Path:
    """Where the copy of the model lies that is counted in a folder; its notes hold the threshold of `matched`."""
    return folder / "counted" / whole_of(config).id


def copy(config: Counting, path: str, folder: Path) -> None:
    """Copy the model saved at `path` beside the records of its count, if nobody has.

    The threshold is measured once, as another processor might find another last bit.
    """

    def make():
        model, task = load(path), task_named(config.task)
        tau = float(matched_policy(jax.random.key(0), model, task, MATCHED).tau)
        return model, {"task": config.task, "name": Path(path).name, "tau": tau}

    load_or_make(copy_of(config, folder), make)


def counted(config: Counting, folder: Path) -> tuple[Any, Task, dict[str, Policy]]:
    """The model that is counted in a folder, on which task, and under which policies.

    Raises:
      ValueError: the copy was altered, or this code is not that which the count began with.
    """
    if source() != config.code:
        raise ValueError("this is other code than the count was begun with; start the command again, for a new count")
    path, task = copy_of(config, folder), task_named(config.task)
    return load(path), task, policies_of(task, notes(path)["tau"])


def perform_share(run: Run, folder: Path, watch: Watch) -> dict[str, Any]:
    """Count one share, wherever that is done."""
    config = run.config
    counts = shares.count_share(
        *counted(config, folder), config.number, largest=config.largest,
        watch=functools.partial(watch, f"counting, share {config.number}"),
    )  # fmt: skip
    return {"task": config.task, "measurements": exact.as_json(counts)}


def shares_of(config: Counting, folder: Path) -> list[range]:
    """The ranks of each share of a count."""
    return shares.shares_of(*counted(config, folder), largest=config.largest)


def runs_of(config: Counting, folder: Path) -> list[Run]:
    """A run a share."""
    number = len(shares_of(config, folder))
    return [Run(COUNT, dataclasses.replace(config, number=share), 0, task=config.task) for share in range(number)]


def perform_whole(run: Run, folder: Path, watch: Watch) -> dict[str, Any]:
    """Put the shares of a folder together: the whole count, checked, as plain numbers.

    Raises:
      ValueError: a share is missing, unsound (`testbed.evaluation.shares.whole`), or was counted by other code.
    """
    config = run.config
    parts = [part for share in runs_of(config, folder) if (part := results.find(folder, share.id)) is not None]
    if others := sum(part["provenance"]["source"] != config.code for part in parts):
        raise ValueError(f"{plural(others, 'share')} came from other code; delete the records in {folder}, count anew")
    counts = [exact.from_json(part["measurements"]) for part in parts]
    together = shares.whole(task_named(config.task), shares_of(config, folder), counts)
    processors = sorted({part["provenance"]["processor"] for part in parts})
    return {
        "task": config.task,
        "models": {notes(copy_of(config, folder))["name"]: digest_of(counted(config, folder)[0])},
        "measurements": {name: exact.summary(counted) for name, counted in together.items()},
        "processors": processors,
    }


def count_saved(
    paths: list[str], task: str | None, folder: Path, console: Console, prepare: Callable[[Path], None], *,
    largest: int | None, place: Callable[[], AbstractContextManager[Place]],
) -> int:  # fmt: skip
    """Count the failures of saved models in shares, and print what was counted; returns the exit status.

    `prepare(folder)` is called once it is known that all can be counted. `place()` opens where shares are counted.
    """
    counts = [counting_of(path, task, largest) for path in paths]
    prepare(folder)
    failed = []
    for config, path in zip(counts, paths, strict=True):
        copy(config, path, folder)
        failed += _count(config, folder, console, place)
    for line in failed:
        console.print(f"failed: {line}", style="red", markup=False, highlight=False)
    return 1 if failed else 0


def _count(config: Counting, folder: Path, console: Console, place) -> list[str]:
    """Count what is missing of one count, and print it; a line for each share that failed."""
    run = whole_of(config)
    if results.find(folder, run.id) is None:
        parts, started = runs_of(config, folder), time.monotonic()
        size = space_size(task_named(config.task))
        missing = len({part.id for part in parts} - results.read(folder)[0].keys())
        console.print(
            f"{config.task}: {size:,} prompts in {plural(len(parts), 'share')}, {missing} to count; "
            f"records go to {folder}. The same command elsewhere helps.", markup=False, highlight=False,
        )  # fmt: skip
        outcome = sweep(parts, perform_share, folder, console, place=place())
        if outcome.failed:
            return outcome.failed
        rate = size * missing / len(parts) / (time.monotonic() - started)
        console.print(f"{rate:,.0f} prompts a second, those of helpers included", markup=False, highlight=False)
        failed = sweep([run], perform_whole, folder, console).failed
        if failed:
            return failed
    show(console, config, results.find(folder, run.id), notes(copy_of(config, folder)))
    return []


def show(console: Console, config: Counting, record: dict[str, Any], of: dict[str, Any]) -> None:
    """Print a whole count; `of` are the notes of the model's copy."""
    measured = record["measurements"]
    title = f"{of['name']}, task {config.task}: failing prompts of {measured['greedy']['prompts']:,}"
    table = Table(title=title, title_justify="left", title_style="bold")
    heads = ("policy", "failing", "share of hazards", "egregious", "worst margin", "safe prompts refused")
    for head in heads:
        table.add_column(head, justify="left" if head == "policy" else "right")
    for name, counted in measured.items():
        failures, alarms = whole(counted["failures"]), counted["false_alarms"]
        share = failures / max(whole(counted["hazardous"]), 1)
        refused = "-" if alarms is None else f"{whole(alarms) / max(whole(counted['safe']), 1):.2%}"
        row = f"{failures:,.0f}", f"{share:.2e}", prompts(counted["egregious"]), f"{counted['worst_margin']:.2f}"
        label = f"matched (threshold {of['tau']:.2f})" if name == "matched" else name
        table.add_row(label, *row, refused)
    console.print(table)
    console.print("checked: every prompt was visited, and none twice", markup=False, highlight=False)
    if len(record["processors"]) > 1:
        kinds = "; ".join(record["processors"])
        told = f"counted on processors of several kinds, which round otherwise near zero ({kinds})"
        console.print(told, style="yellow", markup=False, highlight=False)
