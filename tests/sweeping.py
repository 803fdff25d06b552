"""Sweeps of runs that take no time: their worklists, what they do, and the records that they must end with."""

import dataclasses
import hashlib
import io
import re
from pathlib import Path

from rich.console import Console

from testbed.runs import results
from testbed.runs.sweep import Run


@dataclasses.dataclass(frozen=True)
class Config:
    size: int


def worklist(sizes: int = 3, seeds: int = 2) -> list[Run]:
    return [Run("fake", Config(size), seed) for size in range(sizes) for seed in range(seeds)]


def perform(run, folder, watch) -> dict:
    """A pure function of config and seed that takes no time."""
    watch("first", 0, 2)
    numbers = [int(byte) for byte in hashlib.sha256(f"{run.config.size} {run.seed}".encode()).digest()]
    watch("second", 1, 2)
    return {"measurements": {"numbers": numbers, "nested": {"size": run.config.size}}, "models": {"plain": "abc"}}


class Counting:
    """`perform`, which remembers what it was asked for, and does what `trouble` says first."""

    def __init__(self, trouble=lambda config, seed, watch: None):
        self.asked, self.trouble = [], trouble

    def __call__(self, run, folder, watch):
        self.asked.append((run.config.size, run.seed))
        self.trouble(run.config, run.seed, watch)
        return perform(run, folder, watch)


def quiet() -> Console:
    return Console(file=io.StringIO())


def facts(folder: Path) -> dict[str, dict]:
    """All records of a folder, without what may differ between two sweeps of the same runs."""
    records, problems = results.read(folder)
    assert problems == []
    for record in records.values():
        assert record.pop("seconds") >= 0
        record.pop("provenance")
        assert re.fullmatch("[0-9a-f]{16}", record.pop("digest"))
    return records


def expected(runs: list[Run]) -> dict[str, dict]:
    """The records that a worklist must end with, written down independently of the sweep."""
    return {
        results.run_id("fake", run.config, run.seed): {
            "format": results.FORMAT,
            "run": results.run_id("fake", run.config, run.seed),
            "experiment": "fake",
            "config": {"size": run.config.size},
            "omitted": [],
            "sources": {},
            "seed": run.seed,
            "measurements": {
                "numbers": list(hashlib.sha256(f"{run.config.size} {run.seed}".encode()).digest()),
                "nested": {"size": run.config.size},
            },
            "models": {"plain": "abc"},
        }
        for run in runs
    }


def contents(folder: Path) -> dict[str, tuple[bytes, int]]:
    return {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.iterdir()}
