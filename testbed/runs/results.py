"""Records: one JSON file a run, written once and whole, with its provenance; read back as a table."""

import dataclasses
import datetime
import hashlib
import json
import os
import platform
import re
import secrets
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pandas as pd

FORMAT = "worst-case-testbed record 1"
LIBRARIES = ("jax", "jaxlib", "flax", "optax", "numpy", "scipy")


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
            os.link(temporary, path)  # unlike a rename, a link never replaces an existing file
    except FileExistsError:
        return False
    finally:
        temporary.unlink(missing_ok=True)
    return True


def _identity(config: Any) -> Any:
    """A config as plain data, without what goes without saying.

    A field that is added later names, as `metadata["before"]`, what every run had until then; where it holds that, it
    is left out, so that runs keep their ids.
    """
    if not dataclasses.is_dataclass(config):
        return config
    values = {field: getattr(config, field.name) for field in dataclasses.fields(config)}
    return {f.name: _identity(v) for f, v in values.items() if "before" not in f.metadata or v != f.metadata["before"]}


def run_id(experiment: str, config: Any, seed: int) -> str:
    """A name for (experiment, config dataclass, seed): the same run always gets the same id, another never does."""
    text = json.dumps([experiment, _identity(config), seed], sort_keys=True)
    return f"{experiment}-seed{seed}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"


def provenance() -> dict[str, Any]:
    """What a run depends on besides its config: code revision, library versions, Python, device, processor, threads."""
    here = Path(__file__).parent
    try:
        git = ["git", "-C", str(here)]
        revision = subprocess.run(
            [*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True
        ).stdout.strip()
        status = [*git, "status", "--porcelain", "--untracked-files=no"]
        revision += "+changes" if subprocess.run(status, capture_output=True, text=True).stdout.strip() else ""
    except (OSError, subprocess.CalledProcessError):
        revision = "unknown"
    return {
        "revision": revision,
        "python": platform.python_version(),
        "versions": {name: metadata.version(name) for name in LIBRARIES},
        "device": jax.devices()[0].device_kind,
        "machine": platform.machine(),
        "processor": processor(),
        "threads": os.environ.get("NPROC"),  # into so many parts does XLA cut a sum
    }


def processor() -> str:
    """The processor, and its vector instructions: another rounds otherwise, and a training magnifies that."""
    try:
        told = dict(re.findall(r"^([^\t:]+?)\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE))
    except OSError:
        return platform.processor()
    vectors = re.findall(r"\b(?:avx|fma|amx|sve|asimd)\w*", told.get("flags", told.get("Features", "")))
    return " ".join([told.get("model name", platform.machine()), *sorted(set(vectors))])


def now() -> dict[str, str]:
    """The time of day, for a record's provenance (UTC)."""
    return {"finished": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")}


def _plain(value: Any) -> Any:
    """Numpy numbers and arrays as JSON's own types."""
    if isinstance(value, np.ndarray | np.generic | jax.Array):
        return np.asarray(value).tolist()
    raise TypeError(f"a record cannot hold {value!r}; return plain numbers")


def write(folder: Path, run: str, record: dict[str, Any]) -> bool:
    """Write a run's record, unless one is there already: then it is left alone. Returns whether it was written.

    Raises:
      TypeError: the record holds what JSON cannot.
    """
    text = json.dumps({"format": FORMAT, "run": run} | record, indent=1, default=_plain)
    return write_atomically(folder / f"{run}.json", text.encode(), replace=False)


def read_record(path: Path) -> dict[str, Any]:
    """The record that a file holds.

    Raises:
      ValueError: it holds none (truncated, foreign, renamed); says so in one line.
      FileNotFoundError: it is not there.
    """
    try:
        record = json.loads(path.read_text())
    except FileNotFoundError:
        raise
    except (OSError, ValueError, RecursionError) as error:
        told = f"{path}: not readable as JSON ({error}); if it was a record, delete it and run again"
        raise ValueError(told) from error
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        raise ValueError(f"{path}: not a record of this testbed")
    if record.get("run") != path.stem:
        raise ValueError(f"{path}: it holds run {record.get('run')!r}; give it its own name back")
    return record


def read(folder: Path) -> tuple[dict[str, dict], list[str]]:
    """The records of a folder by run id, and a line for each file that is skipped because it is none."""
    records, problems = {}, []
    for path in sorted(folder.glob("*.json")):
        try:
            records[path.stem] = read_record(path)
        except ValueError as error:
            problems.append(f"skipped {error}")
        except FileNotFoundError:  # removed meanwhile
            continue
    return records, problems


def load(folder: str | Path, experiment: str | None = None) -> pd.DataFrame:
    """One row a run, config and measurements side by side, for notebooks and figures.

    Nested numbers get dotted columns (`greedy.exact.failures`).

    Raises:
      ValueError: the folder holds no record (of that experiment).
    """
    records, _ = read(Path(folder))
    rows = [r for r in records.values() if experiment in (None, r["experiment"])]
    if not rows:
        raise ValueError(f"{folder} holds no records" + (f" of {experiment}" if experiment else ""))
    flat = [
        {"run": r["run"], "experiment": r["experiment"], "seed": r["seed"], "seconds": r["seconds"]}
        | {f"config.{name}": value for name, value in r["config"].items()}
        | r["measurements"]
        for r in rows
    ]
    return pd.json_normalize(flat)
