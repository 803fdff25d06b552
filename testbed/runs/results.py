"""Records: one JSON file a run, written once and whole, with its provenance; read back as a table.

Finished records may be folded into one file, a line each (`testbed.runs.packing`). Both are read.
"""

import contextlib
import dataclasses
import errno
import hashlib
import json
import os
import re
import secrets
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pandas as pd

from testbed.outside import sources

FORMATS = ("worst-case-testbed record 1", "worst-case-testbed record 2")
FORMAT = FORMATS[-1]  # of what is written; all of them are read
# Fields that ids of the first format leave out where they hold this: they came after the first runs.
OMITTED_AT_FIRST = {
    "layers": 2,
    "label": "",
    "recipe": {
        "order": "anyone", "candidates": 1, "failures_only": False, "replay": "evenly",
        "twins": False, "share": 0.5, "loss": "plain", "layer": 0, "eps": 0.0,
    },
}  # fmt: skip
SEEDS = 2**32  # `jax.random.key` takes the seed modulo this
LARGEST = 64 * 2**20  # bytes of a file that is opened as a record
PACKED = "records.jsonl"  # the file of a folder's packed records
LARGEST_PACKED = 4 * 2**30  # bytes of it
HANDFUL = 5  # foreign files that are told one by one
# What a file system says that has no hard links.
NO_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS}
DIGEST = r"[0-9a-f]{16}"
RUN_ID = r".+-seed\d+-[0-9a-f]{12}"


def write_atomically(path: Path, data: bytes, replace: bool = True) -> bool:
    """Write a file so that it is either absent or whole, whenever the process is killed.

    An existing file is replaced, or with `replace=False` left alone. Returns whether the file was written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        with open(temporary, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        if replace:
            os.replace(temporary, path)
        else:
            _link(temporary, path)
    except FileExistsError:
        return False
    finally:
        temporary.unlink(missing_ok=True)
    return True


def _link(temporary: Path, path: Path) -> None:
    """Give a file its name, unless that is taken: unlike a rename, a link never replaces an existing file.

    Where there are no links, as on FAT and some network folders, it is renamed: who writes a record holds its lock.
    """
    try:
        os.link(temporary, path)
    except OSError as error:
        if error.errno not in NO_LINKS:
            raise
        if path.exists():
            raise FileExistsError(path) from error
        os.replace(temporary, path)


def omitted(config: Any) -> list[str]:
    """The fields of a config dataclass that its id leaves out: `["plain.layers", "label"]`.

    A field that is added later names, as `metadata["before"]`, what every run had until then.
    Where it holds that, it is left out, so that runs keep their ids.
    """
    paths = []
    for field in dataclasses.fields(config) if dataclasses.is_dataclass(config) else ():
        value = getattr(config, field.name)
        if "before" in field.metadata and value == field.metadata["before"]:
            paths.append(field.name)
        else:
            paths += [f"{field.name}.{path}" for path in omitted(value)]
    return paths


def _without(config: Any, paths: list[str]) -> Any:
    """A config as plain data without the fields at the dotted paths."""
    if not isinstance(config, dict):
        return config

    rest = {name: value for name, value in config.items() if name not in paths}
    split = [path.partition(".") for path in paths]
    below = {name: [inner for first, _, inner in split if first == name] for name in rest}
    return {name: _without(value, below[name]) for name, value in rest.items()}


def _as_data(config: Any) -> Any:
    return dataclasses.asdict(config) if dataclasses.is_dataclass(config) else config


def _run_id(experiment: str, config: Any, paths: list[str], seed: int, sources: dict[str, str]) -> str:
    named = [sources] if sources else []  # runs of the testbed's own tasks keep their ids
    text = json.dumps([experiment, _without(config, paths), seed, *named], sort_keys=True)
    return f"{experiment}-seed{seed}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"


def _is_seed(seed: Any) -> bool:
    return isinstance(seed, int) and not isinstance(seed, bool) and 0 <= seed < SEEDS


def run_id(experiment: str, config: Any, seed: int) -> str:
    """A name for (experiment, config dataclass, seed): the same for the same run, and no other's.

    Raises:
      ValueError: the seed is not in [0, 2**32). A key has no more bits of it: others repeat one of these.
    """
    if not _is_seed(seed):
        raise ValueError(f"a seed must be a whole number from 0 to {SEEDS - 1}, not {seed!r}")
    data = _as_data(config)
    return _run_id(experiment, data, omitted(config), seed, sources([experiment, data]))


def described(experiment: str, config: Any, seed: int) -> dict[str, Any]:
    """The part of a record that says which run it is of; its id is made from that again."""
    plain, paths = _as_data(config), omitted(config)
    named = sources([experiment, plain])
    return {"experiment": experiment, "config": plain, "omitted": paths, "seed": seed, "sources": named}


def as_plain(value: Any) -> Any:
    """Numpy numbers and arrays as JSON's own types."""
    if isinstance(value, np.ndarray | np.generic | jax.Array):
        return np.asarray(value).tolist()
    raise TypeError(f"a record cannot hold {value!r}; return plain numbers")


def _digest(record: dict[str, Any]) -> str:
    """A digest of a record, of all but the digest that it holds."""
    rest = {name: value for name, value in record.items() if name != "digest"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()[:16]


def _omitted_at_first(config: dict[str, Any]) -> list[str]:
    """What ids of the first format leave out, at any depth; those records don't say it."""
    paths = []
    for name, value in config.items():
        if name in OMITTED_AT_FIRST and value == OMITTED_AT_FIRST[name]:
            paths.append(name)
        elif isinstance(value, dict):
            paths += [f"{name}.{path}" for path in _omitted_at_first(value)]
    return paths


def _omitted_of(record: dict[str, Any]) -> list[str]:
    first = record["format"] == FORMATS[0]
    return _omitted_at_first(record["config"]) if first else record["omitted"]


def _is_number(value: Any) -> bool:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and 0 <= value < float("inf")


def _is_paths(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(path, str) for path in value)


def _is_texts(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(text, str) for text in value.values())


SHAPE = {
    "run": (lambda value: isinstance(value, str), "text"),
    "experiment": (lambda value: isinstance(value, str), "text"),
    "config": (lambda value: isinstance(value, dict), "an object"),
    "seed": (_is_seed, f"a whole number from 0 to {SEEDS - 1}"),
    "measurements": (lambda value: isinstance(value, dict), "an object"),
    "seconds": (_is_number, "a number of at least 0"),
    "provenance": (lambda value: isinstance(value, dict), "an object"),
}
SHAPE_SINCE = {
    "omitted": (_is_paths, "a list of texts"),
    "digest": (lambda value: isinstance(value, str), "text"),
}
# Only records of a user's own code name sources, and only those that decide a question its protocol.
SHAPE_IF_THERE = {
    "sources": (_is_texts, "an object of texts"),
    "protocol": (lambda value: isinstance(value, str) and re.fullmatch(DIGEST, value), "16 hexadecimal digits"),
}


def _refuse_malformed(record: Any) -> None:
    """Raise a ValueError that says what of a record, as JSON holds it, is missing, wrong or altered."""
    if not isinstance(record, dict) or record.get("format") not in FORMATS:
        raise ValueError("not a record of this testbed")
    first = record["format"] == FORMATS[0]
    for name, (fits, kind) in (SHAPE if first else SHAPE | SHAPE_SINCE).items():
        if name not in record:
            raise ValueError(f"the record has no {name}; delete it and run again")
        if not fits(record[name]):
            raise ValueError(f"the record's {name} must be {kind}; delete it and run again")
    for name, (fits, kind) in SHAPE_IF_THERE.items():
        if name in record and not fits(record[name]):
            raise ValueError(f"the record's {name} must be {kind}; delete it and run again")
    if not first and record["digest"] != _digest(record):
        raise ValueError("its content was altered; delete it and run again")
    made_of = record["experiment"], record["config"], _omitted_of(record), record["seed"]
    run = _run_id(*made_of, record.get("sources", {}))
    if run != record["run"]:
        told = f"its experiment, config and seed make run {run!r}, not {record['run']!r}"
        raise ValueError(f"{told}; delete it and run again")


def write(folder: Path, run: str, record: dict[str, Any]) -> bool:
    """Write a run's record, unless one is there already. Returns whether it was written.

    Args:
      record: `described(...)`, `measurements`, `seconds`, `provenance`, and anything else.

    Raises:
      TypeError: the record holds what JSON cannot.
      ValueError: it is not a whole record of this run: it would not be read again.
    """
    record = json.loads(json.dumps(record | {"format": FORMAT, "run": run}, default=as_plain))
    record = {"format": FORMAT, "run": run} | record | {"digest": _digest(record)}
    try:
        _refuse_malformed(record)
    except ValueError as error:
        raise ValueError(f"{run}: {error}") from error
    text = json.dumps(record, indent=1)
    return write_atomically(folder / f"{run}.json", text.encode(), replace=False)


def read_regular(path: Path, most: int = LARGEST) -> bytes:
    """The content of a regular file of at most `most` bytes: no pipe, which would hang, and no device.

    Raises:
      FileNotFoundError: it is not there.
      OSError: it is something else, larger, or not readable.
    """
    about = path.stat()
    if not stat.S_ISREG(about.st_mode):
        raise OSError("not a regular file")
    if about.st_size > most:
        raise OSError(f"{about.st_size:,} bytes are too many")
    return path.read_bytes()


def _parsed(text: bytes, place: str, thing: str) -> dict[str, Any]:
    """The record that a text holds; `place` and `thing` say in an error where it stands, and what to delete."""
    try:
        record = json.loads(text)
    except (ValueError, RecursionError) as error:
        mend = f"if it was a record, delete {thing} and run again"
        raise ValueError(f"{place}: not readable as JSON ({error}); {mend}") from error
    try:
        _refuse_malformed(record)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{place}: {error}") from error
    return record


def read_record(path: Path) -> dict[str, Any]:
    """The record that a file holds.

    Raises:
      ValueError: it holds none (truncated, foreign, renamed, altered); says so in one line.
      FileNotFoundError: it is not there.
    """
    try:
        text = read_regular(path)
    except FileNotFoundError:
        raise
    except OSError as error:
        mend = "if it was a record, delete it and run again"
        raise ValueError(f"{path}: not readable as JSON ({error}); {mend}") from error
    record = _parsed(text, str(path), "it")
    if record["run"] != path.stem:
        raise ValueError(f"{path}: it holds run {record['run']!r}; give it its own name back")
    return record


def _packed_lines(folder: Path) -> Iterator[tuple[str, bytes]]:
    """Each line of a folder's packed records, with a name for its place; none if the file is not there.

    Raises:
      ValueError: the file is not readable.
    """
    path = folder / PACKED
    try:
        text = read_regular(path, LARGEST_PACKED)
    except FileNotFoundError:
        return
    except OSError as error:
        raise ValueError(f"{path}: not readable ({error}); put the file of packed records back") from error
    for number, line in enumerate(text.split(b"\n"), 1):
        if line.strip():
            yield f"{path}, line {number}", line


def read_packed(folder: Path) -> tuple[dict[str, dict], list[str]]:
    """The packed records of a folder by run id, and a line for each that is damaged.

    Of two different records of a run the first counts, and the other is told.
    """
    records, problems = {}, []
    try:
        for place, line in _packed_lines(folder):
            try:
                record = _parsed(line, place, "the line")
            except ValueError as error:
                problems.append(str(error))
                continue
            first = records.setdefault(record["run"], record)
            if not same(first, record):
                problems.append(f"{place}: another record of {record['run']} than above; delete one of the lines")
    except ValueError as error:
        problems.append(str(error))
    return records, problems


def same(record: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether two records hold the same, seconds and provenance too."""
    return _digest(record) == _digest(other)


def find(folder: Path, run: str) -> dict[str, Any] | None:
    """The record of one run, from a file of its own or a packed line; None if there is none.

    Raises:
      ValueError: the file that should hold it is damaged.
    """
    with contextlib.suppress(FileNotFoundError):
        return read_record(folder / f"{run}.json")
    name = json.dumps(run).encode()
    for place, line in _packed_lines(folder):
        if name in line:
            with contextlib.suppress(ValueError):  # damaged lines are told where the folder is read
                record = _parsed(line, place, "the line")
                if record["run"] == run:
                    return record
    return None


def read_singles(folder: Path) -> tuple[dict[str, dict], list[str]]:
    """The records that have a file of their own, by run id, and a line for each file that is skipped.

    Many files that don't even have a run's name get one line together.
    """
    records, problems, foreign = {}, [], []
    for path in sorted(folder.glob("*.json")):
        try:
            records[path.stem] = read_record(path)
        except ValueError as error:
            (problems if re.fullmatch(RUN_ID, path.stem) else foreign).append(str(error))
        except FileNotFoundError:  # removed meanwhile
            continue
    if len(foreign) > HANDFUL:
        told = f"{len(foreign):,} files of {folder} that are no records"
        foreign = [f"{told}; the first: {foreign[0]}"]
    return records, problems + foreign


def read(folder: Path) -> tuple[dict[str, dict], list[str]]:
    """The records of a folder by run id, single and packed, and a line for each that is skipped.

    A run that has both is taken from the packed file; a different single record of it is told.
    """
    singles, problems = read_singles(folder)  # first: whoever packs removes them after they are in the other file
    packed, damaged = read_packed(folder)
    problems += damaged + different(folder, singles, packed)
    return dict(sorted((singles | packed).items())), [f"skipped {problem}" for problem in problems]


def different(folder: Path, singles: dict[str, dict], packed: dict[str, dict]) -> list[str]:
    """A line for each run whose single record is another than its packed one."""
    both = [run for run in singles if run in packed and not same(singles[run], packed[run])]
    return [f"{folder / run}.json: {PACKED} holds another record of this run; delete one of them" for run in both]


def load(folder: str | Path, experiment: str | None = None) -> pd.DataFrame:
    """One row a run, config and measurements side by side, for notebooks and figures.

    Nested numbers get dotted columns (`greedy.exact.failures`). Rows of one `config_id` differ only
    in their seed.

    Raises:
      ValueError: the folder holds no record (of that experiment).
    """
    records, _ = read(Path(folder))
    rows = [r for r in records.values() if experiment in (None, r["experiment"])]
    if not rows:
        lacks = "holds no records" + (f" of {experiment}" if experiment else "")
        raise ValueError(f"{folder} {lacks if Path(folder).is_dir() else 'does not exist'}")
    return tabulate(rows)


OWN = {"run", "experiment", "config_id", "seed", "seconds", "task", "arm", "protocol", "finished"}
"""The columns that every table of runs has: no measurement may take their names."""


def tabulate(records: Sequence[dict[str, Any]]) -> pd.DataFrame:
    """One row a record, as `load` has it. Those made under a protocol name it, and when they were finished."""
    flat = [
        {"run": r["run"], "experiment": r["experiment"], "config_id": _config_id(r)}
        | {"seed": r["seed"], "seconds": r["seconds"]}
        | {name: r[name] for name in ("task", "arm", "protocol") if r.get(name)}
        | ({"finished": r["provenance"].get("finished")} if "protocol" in r else {})
        | {f"config.{name}": value for name, value in r["config"].items()}
        | r["measurements"]
        for r in records
    ]
    return pd.json_normalize(flat)


def _config_id(record: dict[str, Any]) -> str:
    """A name for a record's config: the same for all its seeds, and in both formats."""
    text = json.dumps(_without(record["config"], _omitted_of(record)), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]
