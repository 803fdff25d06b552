"""Provenance: what a run's numbers depend on besides its config, and when it was done."""

import datetime
import functools
import hashlib
import os
import platform
import re
import subprocess
import tomllib
from importlib import metadata
from pathlib import Path
from typing import Any

import jax

DISTRIBUTION = "worst-case-testbed"
PACKAGES = ("testbed", "tasks", "experiments")
ROOT = Path(__file__).resolve().parents[2]  # the folder that the packages lie in
LIBRARIES = ("jax", "jaxlib", "flax", "optax", "numpy", "scipy")


def here() -> dict[str, Any]:
    """What a run depends on besides its config: all of `means`, and git's revision of a checkout of this project."""
    return means() | {"revision": _revision(ROOT)}


def means() -> dict[str, Any]:
    """What numbers are computed with: code, libraries, Python, device, processor, threads.

    `version` is the distribution's, `source` a digest of the code as it is on disk.
    """
    try:
        version = metadata.version(DISTRIBUTION)
    except metadata.PackageNotFoundError:
        version = "unknown"
    return {
        "version": version,
        "source": source(),
        "python": platform.python_version(),
        "versions": {name: metadata.version(name) for name in LIBRARIES},
        "device": jax.devices()[0].device_kind,
        "machine": platform.machine(),
        "processor": processor(),
        "threads": os.environ.get("NPROC"),  # into so many parts does XLA cut a sum
    }


@functools.cache
def source(root: Path = ROOT) -> str:
    """A digest of the packages' Python files; cached, since a process keeps the code it began with."""
    digest = hashlib.sha256()
    files = [path for package in PACKAGES for path in (root / package).rglob("*.py")]
    for path in sorted(files):
        content = path.read_bytes()
        digest.update(f"{path.relative_to(root).as_posix()} {len(content)}\n".encode() + content)
    return digest.hexdigest()[:16]


def _revision(root: Path) -> str:
    """The commit of this project's checkout; "unknown" in any other repository, or in none."""
    commit = _commit(root)
    try:
        changes = commit and _git(root, "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return commit + ("+changes" if changes else "") or "unknown"


def clean_revision(root: Path = ROOT) -> str:
    """The commit that holds the packages' code just as it is on disk.

    Raises:
      ValueError: there is none, because code was changed or added since, or this is no checkout.
    """
    commit = _commit(root)
    if not commit:
        raise ValueError(f"{root} is no git checkout of {DISTRIBUTION}, so no revision names its code; make a clone")
    code = [f"{package}/*.py" for package in PACKAGES]
    changes = _git(root, "status", "--porcelain", "--untracked-files=all", "--", *code).splitlines()
    if changes:
        raise ValueError(
            f"{len(changes)} files of code differ from the last commit ({changes[0].strip()}); commit first"
        )
    return commit


def _git(root: Path, *words: str) -> str:
    command = ["git", "-C", str(root), *words]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def _commit(root: Path) -> str:
    """The last commit of this project's checkout; nothing in any other repository, or in none."""
    try:
        project = tomllib.loads((root / "pyproject.toml").read_text()).get("project", {})
        top = Path(_git(root, "rev-parse", "--show-toplevel"))
        if project.get("name") != DISTRIBUTION or top.resolve() != root.resolve():
            return ""
        return _git(root, "rev-parse", "HEAD")
    except (OSError, ValueError, AttributeError, subprocess.CalledProcessError):
        return ""


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
    return {"finished": utc()}


def utc() -> str:
    """The time of day, to the second, as ISO 8601 has it: later times are later texts."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
