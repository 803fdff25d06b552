"""Kills at random events: a sweep that trains, attacks, counts and records ends as one that was left alone.

An event is a step of the work, or something done to a file; so nothing depends on how quick the machine is. The quick
test copies the folder at an event: that is what a kill leaves there. The slow one kills for real. Run as a program,
this file forks the sweeps that are killed: it imports JAX, but never starts it.
"""

import collections
import functools
import itertools
import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import NamedTuple

import jax
import pytest
from rich.console import Console

from experiments import bench as benches
from experiments.arm import Arm, Plain
from experiments.bench import bench, defended_model
from tasks import task_named
from testbed.attacks import ATTACKS, attack_model
from testbed.evaluation import exact
from testbed.objective import Objective
from testbed.policy import greedy
from testbed.runs import checkpoints, provenance, results
from testbed.runs.launchers import LAUNCHERS
from testbed.runs.launchers import local as local_launchers
from testbed.runs.sweep import Run, state_file, sweep

ROOT = Path(__file__).parents[1]
FILES = ("fsync", "replace", "link", "unlink")  # what is done to files; each may be the last
# Phases in their order, and how many events of each are tried: by then the next life has something to go on from.
PHASES = {"training the plain model": 20, "adversarial training": 20, "attacking": 1, "counting": 4, "recording": 4}
COMPILING = {"compiling": 100}
QUICK, SLOW, EACH = 20, 200, 10  # kills: in all, and those of one test
DIED = 40  # a sweep ends with this and the number of its workers that were killed
AT, ONE_AT_A_TIME, EVENTS = threading.local(), threading.RLock(), [lambda phase: None]


def worklist() -> list[Run]:
    """Two arms that share their plain model."""
    plain = Plain("injury:length=4", width=8, steps=16, layers=1)
    sizes = dict(steps=16, finds=8, units=4, budget=20, attackers=4, attack="coordinate")
    return [Run("kills", Arm(plain, rounds=rounds, **sizes), 0) for rounds in (1, 4)]


def perform(run, folder, watch) -> dict:
    """Train against an attack, then attack and count."""
    at, task = bench(run.seed, folder, watch), task_named(run.config.plain.task)
    model = defended_model(at, run.config).model
    watch("attacking", 0, 1)
    objective = Objective(task, model, greedy(task))
    found = attack_model(at.key("attack"), ATTACKS["coordinate"](), objective, attackers=4, budget=20)
    show, state = functools.partial(watch, "counting"), state_file(folder, f"{run.id}-count")
    counted = exact.count(model, task, {"greedy": greedy(task)}, watch=show, checkpoint=state)["greedy"]
    watch("recording", 0, 1)
    return {"measurements": {"failures": counted.failures, "margins": found.margin.tolist()}, "models": at.digests}


def told(do, *arguments):
    """Do something to a file, or watch; before it the event is told, one at a time."""
    with ONE_AT_A_TIME:
        EVENTS[-1](getattr(AT, "phase", "starting"))
        return do(*arguments)


def watched(run, folder, watch) -> dict:
    """`perform`, whose phases and steps are told."""

    def tell(phase, done, total):
        AT.phase = phase.split(",")[0]
        if not phase.startswith("waiting"):
            told(watch, phase, done, total)

    return perform(run, folder, tell)


def work(folder: Path, event=lambda phase: None, *, launcher: str = "threads") -> list[str]:
    """A whole sweep; `event(phase)` is called before each of its events. Returns a line for each run that failed."""
    EVENTS.append(event)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoints, "EVERY", 0.0)
        for name in ("program_digest", "_init_program"):  # a name would trace all programs anew
            patch.setattr(benches, name, lambda *parts, **named: "programs")
        for name in FILES:
            patch.setattr(os, name, functools.partial(told, getattr(os, name)))
        # Two workers that are forked at once would hold each other's pipes open.
        place = LAUNCHERS[launcher](2 if launcher == "threads" else 1)
        return sweep(worklist(), watched, folder / "records", Console(quiet=True), place=place).failed


def facts(folder: Path) -> dict[str, dict]:
    records, problems = results.read(folder / "records")
    assert problems == []
    return {run: record["measurements"] | record["models"] for run, record in records.items()}


def models(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (folder / "models").glob("*.safetensors")}


def assert_alike(folder: Path, whole: Path) -> None:
    assert facts(folder) == facts(whole) and models(folder) == models(whole), folder.name
    files = [path.name for path in folder.rglob("*") if path.is_file()]
    left = [name for name in files if name.startswith(".") or name.endswith((".lock", ".npz", ".error"))]
    assert left == [], f"{folder.name}: what a kill leaves is cleared up"


def chosen(events: list[str], number: int, seed: int) -> set[tuple[str, int]]:
    """Random events, as a phase and which event of it, some of each phase: threads may take turns otherwise."""
    choice, every = random.Random(seed), [(phase, n) for phase in PHASES for n in range(events.count(phase))]
    one_each = {choice.choice([event for event in every if event[0] == phase]) for phase in sorted(PHASES)}
    return one_each | set(choice.sample(sorted(set(every) - one_each), number - len(PHASES)))


def test_what_a_kill_leaves_at_a_random_event_is_whole_and_is_completed(tmp_path):
    whole, events = tmp_path / "whole", []
    assert work(whole, events.append) == []
    assert set(events) >= set(PHASES)
    moments, seen = chosen(events, QUICK, seed=0), collections.Counter()

    def event(phase):
        if (phase, seen[phase]) in moments:
            shutil.copytree(tmp_path / "killed", tmp_path / f"killed {phase} {seen[phase]}")
        seen[phase] += 1

    (tmp_path / "killed").mkdir()
    assert work(tmp_path / "killed", event) == []
    assert len(list(tmp_path.glob("killed *"))) == QUICK
    for folder in sorted(tmp_path.glob("killed *")):
        assert facts(folder).items() <= facts(whole).items(), f"{folder.name}: what is there is whole and right"
        assert work(folder) == []
        assert_alike(folder, whole)


class Nursery(NamedTuple):
    """A process that forks sweeps; JAX was imported in it, and not started."""

    process: subprocess.Popen
    folder: Path

    def live(self, folder: Path, launcher: str, moment=None, victim: str = "") -> int:
        """Sweep until the victim (the worker that it falls to, or the sweep) is killed; returns the exit status."""
        json.dump([str(folder), launcher, moment, victim], self.process.stdin)
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())


@pytest.fixture(scope="module")
def nursery(tmp_path_factory):
    folder = tmp_path_factory.mktemp("kills")
    process = subprocess.Popen(
        [sys.executable, __file__, folder / "cache"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    with process:
        made = Nursery(process, folder)
        assert made.live(folder / "whole", "threads") == 0
        yield made


def moments(choice: random.Random, launcher: str) -> list[tuple[tuple[str, int], str]]:
    """When to kill, and whom. Phase after phase, since none that is past would be met again."""
    tried = COMPILING | PHASES
    phases = sorted(choice.choices(list(tried), k=EACH), key=list(tried).index)
    victims = ["sweep", "worker"] if launcher == "processes" else ["sweep"]
    return [((phase, choice.randrange(tried[phase])), choice.choice(victims)) for phase in phases]


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["threads", "processes"])
@pytest.mark.parametrize("seed", range(SLOW // EACH // 2))
def test_a_sweep_killed_again_and_again_ends_as_one_that_was_left_alone(seed, launcher, nursery):
    choice, kills, whole = random.Random(f"{seed} {launcher}"), collections.Counter(), nursery.folder / "whole"
    for number in itertools.count():
        folder = nursery.folder / f"{launcher}-{seed}-{number}"
        for moment, victim in moments(choice, launcher):
            status = nursery.live(folder, launcher, moment, victim)
            assert status in (0, -signal.SIGKILL) or status > DIED, "it ends, or is killed, or its workers are"
            kills[f"{moment[0]}, {victim}"] += max(1, status - DIED) if status else 0
            assert facts(folder).items() <= facts(whole).items(), "what is there is whole and right"
            if not status or kills.total() >= EACH:
                break
        assert nursery.live(folder, launcher) == 0
        assert_alike(folder, whole)
        if kills.total() >= EACH:
            break
    print(json.dumps({"launcher": launcher, "seed": seed, "sweeps": number + 1, "kills": kills}))


def forked(folder: str, launcher: str, moment: list | None, victim: str) -> int:
    """A sweep in a fork of this process; returns its exit status, or minus the signal that ended it."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    seen = collections.Counter()

    def event(phase):
        if [phase, seen[phase]] == moment:
            os.kill(child_of_nursery if victim == "sweep" else os.getpid(), signal.SIGKILL)
        seen[phase] += 1

    child_of_nursery = os.getpid()
    status = 99
    try:
        jax.monitoring.register_event_listener(lambda *_, **__: event("compiling"))
        failed = work(Path(folder), event, launcher=launcher)
        died = sum("died with status -9" in line for line in failed)
        status = DIED + died if died else len(failed)
    finally:
        os._exit(status)


if __name__ == "__main__":
    jax.config.update("jax_compilation_cache_dir", sys.argv[1])
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_disable_most_optimizations", True)
    # Processes are forked, too, so that none has to import JAX anew; the sweep itself never starts it.
    local_launchers.multiprocessing.get_context = lambda _: multiprocessing.context.ForkContext()
    provenance.here = lambda: {"revision": "none"}  # git in every child would take longer than the rest
    for line in sys.stdin:
        print(forked(*json.loads(line)), flush=True)
