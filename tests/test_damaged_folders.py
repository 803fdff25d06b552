"""Damaged folders: whatever lies in a sweep's folder is told in a line, never used, never changed, and stops nothing.

A damage is done to a whole folder of six records. Then its records are read, its status is told, and
the sweep is started again.
"""

import json
import os
import threading
from pathlib import Path

import pytest
from sweeping import expected, perform, quiet, worklist

from testbed.runs import results
from testbed.runs.launchers import threads
from testbed.runs.sweep import status, sweep

RUNS = worklist()
RUN = RUNS[3].id  # whose record, or what lies beside it, is damaged


@pytest.fixture(scope="module")
def healthy(tmp_path_factory):
    """The files of a folder in which a sweep is done."""
    folder = tmp_path_factory.mktemp("healthy")
    assert sweep(RUNS, perform, folder, quiet(), place=threads(1)).failed == []
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def as_bytes(change):
    """The record's bytes become others."""
    return lambda path: path.write_bytes(change(path.read_bytes()))


def as_json(change):
    """The record, as JSON holds it, becomes another."""
    return lambda path: path.write_text(json.dumps(change(json.loads(path.read_text()))))


def without(name):
    return as_json(lambda record: {key: value for key, value in record.items() if key != name})


def having(name, value):
    return as_json(lambda record: record | {name: value})


def edited(edit):
    def change(record):
        edit(record)
        return record

    return as_json(change)


def instead(make):
    """Something else stands where the record was."""

    def damage(path):
        path.unlink()
        make(path)

    return damage


def beside(suffix, make):
    """Something lies where a file of the run belongs, and its record is lost."""

    def damage(path):
        path.unlink()
        make(path.with_suffix(suffix))

    return damage


def hole(path):
    path.touch()
    os.truncate(path, 2**40)  # it takes no room


def binary(path):
    path.write_bytes(bytes(range(256)))


def in_checkpoints(name, make):
    def damage(path):
        path.unlink()
        (path.parent / "checkpoints").mkdir()
        make(path.parent / "checkpoints" / name)

    return damage


FIELDS = ("format", "run", "experiment", "config", "omitted", "seed", "measurements", "seconds", "provenance", "digest")
# What the record's file becomes: it is told, and not used.
RECORDS = {
    "empty": as_bytes(lambda data: b""),
    "one byte": as_bytes(lambda data: data[:1]),
    "truncated in the middle": as_bytes(lambda data: data[: len(data) // 2]),
    "truncated at the end": as_bytes(lambda data: data[:-2]),
    "twice": as_bytes(lambda data: data + data),
    "zeros": as_bytes(lambda data: bytes(len(data))),
    "binary": as_bytes(lambda data: bytes(range(256))),
    "utf-16": as_bytes(lambda data: data.decode().encode("utf-16")[:-1]),
    "a byte that is no text": as_bytes(lambda data: data.replace(b"fake", b"fak\xff", 1)),
    "deeply nested": as_bytes(lambda data: b"[" * 100_000),
    "null": as_bytes(lambda data: b"null"),
    "a number": as_bytes(lambda data: b"17"),
    "a text": as_bytes(lambda data: b'"record"'),
    "a list": as_bytes(lambda data: b"[" + data + b"]"),
    "an object of somebody's": as_bytes(lambda data: b'{"name": "mine", "version": "1.0.0"}'),
    "a web page": as_bytes(lambda data: b"<html></html>"),
    "marks of a merge": as_bytes(lambda data: b"<<<<<<< HEAD\n" + data),
    "only a name": as_json(lambda record: {key: record[key] for key in ("format", "run")}),
    "only a name, first format": as_json(lambda record: {"format": results.FORMATS[0], "run": record["run"]}),
    "of another format": having("format", "worst-case-testbed record 0"),
    "of the first format, altered": as_json(lambda r: r | {"format": results.FORMATS[0], "config": {"size": 7}}),
    **{f"without {name}": without(name) for name in FIELDS},
    **{
        f"{name} is {value!r}"[:40]: having(name, value)
        for name, value in [
            ("run", 7), ("run", "../../x"), ("run", []), ("experiment", ["e"]), ("experiment", None), ("config", [1]),
            ("config", None), ("config", "{}"), ("seed", "0"), ("seed", "../../x"), ("seed", True), ("seed", 1.0),
            ("seed", -1), ("seed", 2**32), ("seed", [0]), ("measurements", [1]), ("measurements", None),
            ("seconds", "1"), ("seconds", None), ("seconds", -1), ("seconds", float("nan")), ("provenance", "x"),
            ("omitted", "size"), ("omitted", [1]), ("digest", 0), ("digest", "0123456789abcdef"), ("format", []),
        ]
    },
    "a failure counted away": edited(lambda record: record["measurements"]["numbers"].__setitem__(7, 0)),
    "another config": edited(lambda record: record["config"].update(size=9)),
    "another seed": having("seed", 5),
    "another experiment": having("experiment", "f"),
    "other seconds": having("seconds", 0.0001),
    "another revision": edited(lambda record: record["provenance"].update(revision="y")),
    "one more omitted": edited(lambda record: record["omitted"].append("size")),
    "a part added": having("note", "mine"),
    "a folder": instead(Path.mkdir),
    "a pipe": instead(os.mkfifo),
    "a link to a device": instead(lambda path: path.symlink_to("/dev/zero")),
    "a link to itself": instead(lambda path: path.symlink_to(path)),
    "a terabyte": instead(hole),
    "another run's record": as_bytes(lambda data: data.replace(b"seed1", b"seed0")),
}  # fmt: skip
# What stands in the way of a run whose record is lost: the sweep does the run, or tells why it cannot.
OBSTACLES = {
    "nothing": lambda path: path.unlink(),
    "a dangling link": instead(lambda path: path.symlink_to("nowhere/at/all")),
    "an error that is a folder": beside(".error", Path.mkdir),
    "an error that is a pipe": beside(".error", os.mkfifo),
    "an error that is binary": beside(".error", binary),
    "an error that is empty": beside(".error", Path.touch),
    "an error that links to a device": beside(".error", lambda path: path.symlink_to("/dev/zero")),
    "a lock that a kill left": beside(".lock", Path.touch),
    "a lock that is a folder": beside(".lock", Path.mkdir),
    "a lock that is a pipe": beside(".lock", os.mkfifo),
    "a lock that is a link": beside(".lock", lambda path: path.symlink_to("elsewhere")),
    "checkpoints that are a file": in_checkpoints(".", lambda path: (path.rmdir(), path.touch())),
    "a checkpoint that is binary": in_checkpoints(f"{RUN}.npz", binary),
    "a checkpoint that is a folder": in_checkpoints(f"{RUN}.npz", Path.mkdir),
    "a temporary file of a kill": lambda path: path.rename(path.with_name(f".{path.name}.0123456789abcdef")),
}


def in_time(work):
    """What `work` returns; a test fails where a pipe or a device would hang it."""
    ended = []
    thread = threading.Thread(target=lambda: ended.append(work()), daemon=True)
    thread.start()
    thread.join(10)
    assert ended, "it hangs, or raised"
    return ended[0]


def state_of(path: Path):
    """What a path holds, nothing of it followed or waited for."""
    if path.is_symlink():
        return os.readlink(path)
    return path.read_bytes() if path.is_file() and path.stat().st_size < 2**20 else path.lstat().st_mode


def damaged(folder: Path, files: dict[str, bytes], damage) -> Path:
    for name, data in files.items():
        (folder / name).write_bytes(data)
    damage(folder / f"{RUN}.json")
    return folder / f"{RUN}.json"


def test_there_are_many_damages():
    assert len(RECORDS) + len(OBSTACLES) >= 80


@pytest.mark.parametrize("name", RECORDS)
def test_a_damaged_record_is_told_not_used_not_changed_and_stops_nothing(name, healthy, tmp_path):
    path = damaged(tmp_path, healthy, RECORDS[name])
    before = {file.name: state_of(file) for file in tmp_path.iterdir()}
    records, [problem] = in_time(lambda: results.read(tmp_path))
    assert sorted(records) == sorted(run.id for run in RUNS if run.id != RUN)
    assert problem.startswith(f"skipped {path}: ") and "\n" not in problem
    told = in_time(lambda: status(RUNS, tmp_path))
    assert RUN not in told["done"] and told["foreign"] == [problem]
    outcome = in_time(lambda: sweep(RUNS, perform, tmp_path, quiet(), place=threads(1)))
    assert outcome.skipped == 5 and [line.split(":")[0] for line in outcome.failed] == [RUN]
    after = {file.name: state_of(file) for file in tmp_path.iterdir() if file.suffix != ".error"}
    assert after == before, "what is damaged may be somebody's: it is left alone"


@pytest.mark.parametrize("name", OBSTACLES)
def test_what_stands_in_the_way_is_told_or_overcome(name, healthy, tmp_path):
    damaged(tmp_path, healthy, OBSTACLES[name])
    told = in_time(lambda: status(RUNS, tmp_path))
    assert RUN not in told["done"] and all("\n" not in line for lines in told.values() for line in lines)
    outcome = in_time(lambda: sweep(RUNS, perform, tmp_path, quiet(), place=threads(1)))
    records, _ = in_time(lambda: results.read(tmp_path))
    assert outcome.skipped == 5 and (RUN in records) is not bool(outcome.failed)
    truth = expected(RUNS)
    assert all({part: record[part] for part in truth[run]} == truth[run] for run, record in records.items())
