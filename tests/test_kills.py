"""Kills at random moments: a sweep that trains, attacks and counts ends with the records of one that was left alone.

The quick kills are in test_sweep.py (at every few lines of code) and test_results.py (inside a write). Here a
child works for real, keeps its state after every unit, and is killed again and again until it gets through.
"""

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from testbed.runs import results

ROOT = Path(__file__).parents[1]
KILLS, ROUNDS = 10, 20  # 200 in all
CHILD = """
import sys; sys.path[:0] = [{tests!r}, {root!r}]
import test_kills
from pathlib import Path
if __name__ == "__main__":
    test_kills.work(Path({folder!r}), {launcher!r})
"""


def perform(run, folder, watch) -> dict:
    """Train against an attack, then attack and count; what is kept on the way is kept at once."""
    import functools

    from experiments.bench import bench, measure_arm
    from testbed.runs import checkpoints

    checkpoints.EVERY = 0.0
    measure = functools.partial(measure_arm, attacks=("coordinate",))
    return {"measurements": measure(run.config, bench(run.seed, folder, watch))}


def work(folder: Path, launcher: str) -> None:
    """The sweep of the child: two arms of two seeds."""
    import jax
    from rich.console import Console

    from experiments.arm import Arm, Plain
    from testbed.runs.launchers import LAUNCHERS
    from testbed.runs.sweep import Run, sweep

    jax.config.update("jax_compilation_cache_dir", str(folder.parent / "cache"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    plain = Plain("injury:length=4", width=8, steps=32)
    sizes = dict(steps=32, finds=16, units=16, budget=20, attackers=4, attack="coordinate")
    runs = [Run("kills", Arm(plain, rounds=rounds, **sizes), seed) for seed in range(2) for rounds in (1, 4)]
    failed = sweep(runs, perform, folder / "records", Console(quiet=True), place=LAUNCHERS[launcher](2)).failed
    assert not failed, failed


def started(folder: Path, launcher: str) -> subprocess.Popen:
    script = folder.parent / f"{folder.name}.py"
    names = {"tests": str(ROOT / "tests"), "root": str(ROOT), "folder": str(folder), "launcher": launcher}
    script.write_text(CHILD.format(**names))
    return subprocess.Popen(
        [sys.executable, str(script)], start_new_session=True, env=os.environ | {"PYTHONPATH": str(ROOT)}
    )


def facts(folder: Path) -> dict[str, dict]:
    records, problems = results.read(folder / "records")
    assert problems == []
    return {run: record["measurements"] for run, record in records.items()}


def models(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (folder / "models").glob("*.safetensors")}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The folder of a sweep that was left alone; beside it lies what has been compiled."""
    folder = tmp_path_factory.mktemp("kills") / "undisturbed"
    assert started(folder, "threads").wait() == 0
    assert len(facts(folder)) == 4
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(ROUNDS))
def test_a_sweep_killed_at_random_moments_ends_as_if_it_had_been_left_alone(seed, undisturbed):
    moments, launcher = random.Random(seed), ("threads", "processes")[seed % 2]
    folder = undisturbed.parent / str(seed)
    for _ in range(KILLS):
        child = started(folder, launcher)
        try:
            child.wait(timeout=moments.uniform(1, 20))
        except subprocess.TimeoutExpired:
            child.kill()
        child.wait()
        assert facts(folder).items() <= facts(undisturbed).items(), "what is there is whole and right"
    assert started(folder, launcher).wait() == 0
    assert facts(folder) == facts(undisturbed)
    assert models(folder) == models(undisturbed)
    left = [path.name for path in folder.rglob("*") if path.suffix in (".lock", ".npz", ".error")]
    assert left == [], "what kills left is cleared up"
