"""A record done again: are its numbers those that the code gives here and now?"""

import dataclasses
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console

from experiments.arm import Arm, Plain, attack_of, defence_of, sizes_of
from experiments.columns import task_of
from experiments.play.session import SESSIONS
from experiments.reading import RECORDS
from experiments.worklist import ABLATION, experiment_named, perform, runs_of
from testbed.outside import sources
from testbed.runs import results
from testbed.runs.sweep import Run, sweep

ABSENT = "-"


def rebuilt(like: Any, value: Any) -> Any:
    """A config as JSON holds it, as the dataclass that it was; `like` is any config of its kind.

    Raises:
      ValueError: it has other fields.
    """
    if dataclasses.is_dataclass(like):
        added = {f.name: f.metadata["before"] for f in dataclasses.fields(like) if "before" in f.metadata}
        names = [field.name for field in dataclasses.fields(like)]
        if not isinstance(value, dict) or sorted({**added, **value}) != sorted(names):
            raise ValueError(
                f"the record's config {value} has other fields than {type(like).__name__} has now: {names}"
            )
        known = {name: rebuilt(getattr(like, name), told) for name, told in value.items()}
        return type(like)(**added | known)
    return tuple(rebuilt(None, entry) for entry in value) if isinstance(value, list) else value  # it holds no list


def run_of(record: dict[str, Any]) -> Run:
    """The run that a record is of.

    Raises:
      ValueError: its experiment or config, or what that names, is not there any more.
    """
    name, task, like = record["experiment"], task_of(record), Arm()
    if name != ABLATION:
        experiment = experiment_named(name)
        quickest = experiment.quickest
        like = runs_of(name, experiment, quickest, experiment.presets[quickest].tasks[0], 0)[0].config
    try:
        config = rebuilt(like, record["config"])
    except TypeError as error:
        raise ValueError(f"the record's config holds what {type(like).__name__} cannot: {error}") from error
    run = Run(name, config, record["seed"], record.get("arm") or record["measurements"].get("arm", ""), task)
    run = run._replace(together=tuple(record.get("population", ())))
    changed = differences(record.get("sources", {}), sources([name, record["config"]]))
    if changed:
        modules = ", ".join(module for module, *_ in changed)
        raise ValueError(f"the code of {modules} is not what it was when the record was made; bring that version back")
    if run.id != record["run"]:
        raise ValueError(f"the record's config and seed make run {run.id}, not {record['run']}: it was edited")
    refuse_unknown(config)
    return run


def refuse_unknown(config: Any) -> None:
    """Make sure that the tasks, attacks and defences that a config names, at any depth, are there.

    Raises:
      ValueError: one is not.
    """
    if not dataclasses.is_dataclass(config):
        return
    for field in dataclasses.fields(config):
        refuse_unknown(getattr(config, field.name))
    try:
        if isinstance(config, Plain):
            sizes_of(config)
        if isinstance(config, Arm):
            attack_of(config), defence_of(config.recipe)
    except (KeyError, TypeError) as error:
        raise ValueError(f"the record's config names what is not there any more: {error}") from error


def leaves(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """Every number of nested measurements with its dotted name."""
    if isinstance(value, dict | list) and value:
        pairs = value.items() if isinstance(value, dict) else enumerate(value)
        for key, inner in pairs:
            yield from leaves(inner, f"{name}.{key}" if name else str(key))
    else:
        yield name, value


def differences(then: Any, now: Any) -> list[tuple[str, Any, Any]]:
    """Name, old and new value of everything in which two nested values differ; a NaN equals a NaN."""
    old, new = dict(leaves(then)), dict(leaves(now))
    pairs = ((name, old.get(name, ABSENT), new.get(name, ABSENT)) for name in {**old, **new})
    return [(name, a, b) for name, a, b in pairs if a != b and not (a != a and b != b)]


def record_named(name: str, out: Path) -> tuple[dict[str, Any], Path]:
    """The record that a path or `QUESTION/ID` names, single or packed, and its folder.

    A question's folder is looked for here, in `out`, and among the shipped records.

    Raises:
      ValueError: there is no such record, or it is damaged.
    """
    path = Path(name)
    run = path.name.removesuffix(".json")
    if path.exists():  # a folder or a device is refused as such
        return results.read_record(path), path.parent
    for folder in (path.parent, out / path.parent, RECORDS / path.parent):
        if (record := results.find(folder, run)) is not None:
            return record, folder
    raise ValueError(f"--rerun: {name} does not exist; name a file, or QUESTION/ID of a record in {out}")


def rerun(name: str, out: Path, console: Console) -> int:
    """Do a record's run again from nothing, in a folder of its own, and say what differs; returns 0 if nothing does.

    Raises:
      ValueError: there is no such record, or its run is not there any more.
    """
    then, source = record_named(name, out)
    run = run_of(then)
    console.print(f"{run.id} of {source}: once more; it took {then['seconds']} s", markup=False, highlight=False)
    with tempfile.TemporaryDirectory() as empty:
        folder = Path(empty) / run.experiment  # models and measurements lie beside it, and sessions that were played
        if (sessions := source.parent / SESSIONS).is_dir():
            shutil.copytree(sessions, Path(empty) / SESSIONS)
        outcome = sweep([run], perform, folder, console)
        if outcome.failed:
            console.print(f"failed: {outcome.failed[0]}", style="red", markup=False, highlight=False)
            return 1
        now = results.read(folder)[0][run.id]
    numbers = dict(leaves(then["measurements"]))
    changed = differences(then["measurements"], now["measurements"])
    for name, old, new in changed:
        console.print(f"  {name}: {old} then, {new} now", style="red", markup=False, highlight=False)
    for name, old, new in differences(*({**r["provenance"], "finished": 0} for r in (then, now))):
        console.print(f"  {name}: {old} then, {new} now", style="yellow", markup=False, highlight=False)
    same = sum(name not in {c[0] for c in changed} for name in numbers)
    console.print(f"{same} of {len(numbers)} measurements are the same", highlight=False)
    return 1 if changed else 0
