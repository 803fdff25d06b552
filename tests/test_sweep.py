"""A sweep: each run once, the same records however it is stopped, killed, shared or watched.

A child process forks the sweeps that are killed at each line they execute: one that has not started JAX.
"""

import dataclasses
import errno
import gc
import hashlib
import io
import os
import re
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path

import jax
import pytest
from children import in_child
from conftest import slow
from rich.console import Console

from testbed.runs import checkpoints, provenance, results
from testbed.runs.launchers import threads
from testbed.runs.launchers.place import Place
from testbed.runs.locks import held, hold
from testbed.runs.sweep import MAPS, MAPS_ALLOWED, Outcome, Run, state_file, status, sweep
from testbed.training.rounds import train
from testbed.training.schedule import Schedule

ROOT = Path(__file__).parents[1]


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


@pytest.mark.parametrize("workers", [None, 1, 2, 8])
def test_every_run_is_done_once_and_recorded_alike_by_any_number_of_workers(tmp_path, workers):
    runs, counting = worklist(), Counting()
    assert sweep(runs, counting, tmp_path, quiet(), place=threads(workers)) == Outcome(6, 0, [])
    assert sorted(counting.asked) == [(size, seed) for size in range(3) for seed in range(2)]
    assert facts(tmp_path) == expected(runs)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(f"{run.id}.json" for run in runs)


def test_a_record_tells_where_it_comes_from(tmp_path):
    sweep(worklist(1, 1), perform, tmp_path, quiet())
    [record] = results.read(tmp_path)[0].values()
    source = provenance.here()
    assert {name: record["provenance"][name] for name in source} == source
    assert "finished" in record["provenance"]


def test_seconds_are_those_of_the_run(tmp_path):
    started = time.perf_counter()
    sweep(worklist(1, 1), Counting(lambda *_: time.sleep(0.11)), tmp_path, quiet())
    [record] = results.read(tmp_path)[0].values()
    assert 0.1 <= record["seconds"] <= time.perf_counter() - started


def test_what_is_there_is_skipped_and_left_alone(tmp_path):
    sweep(worklist(2), perform, tmp_path, quiet())
    before, counting = contents(tmp_path), Counting()
    assert sweep(worklist(3), counting, tmp_path, quiet()) == Outcome(2, 4, [])
    assert sorted(counting.asked) == [(2, 0), (2, 1)]
    after = contents(tmp_path)
    assert {name: after[name] for name in before} == before
    assert facts(tmp_path) == expected(worklist(3))
    assert sweep(worklist(3), counting, tmp_path, quiet()) == Outcome(0, 6, [])
    assert contents(tmp_path) == after


def test_a_run_that_is_listed_twice_is_done_once(tmp_path):
    counting = Counting(lambda *_: time.sleep(0.05))
    sweep(worklist() + worklist(), counting, tmp_path, quiet(), place=threads(4))
    assert sorted(counting.asked) == [(size, seed) for size in range(3) for seed in range(2)]
    assert facts(tmp_path) == expected(worklist())


def test_an_empty_worklist_is_done(tmp_path):
    assert sweep([], perform, tmp_path, quiet()) == Outcome(0, 0, [])


def test_a_damaged_record_is_not_taken_for_done_nor_overwritten(tmp_path):
    runs = worklist()
    damaged = tmp_path / f"{runs[2].id}.json"
    damaged.write_text('{"format": "worst-ca')
    outcome = sweep(runs, perform, tmp_path, quiet())
    assert damaged.read_text() == '{"format": "worst-ca', "a user's file is not destroyed"
    assert outcome.done == 5, "a run whose record could not be written is not done"
    assert len(outcome.failed) == 1
    assert runs[2].id in outcome.failed[0]
    damaged.unlink()
    assert sweep(runs, perform, tmp_path, quiet()) == Outcome(1, 5, [])
    assert facts(tmp_path) == expected(runs)


# An error, and what a user must be told of it.
ERRORS = {
    "value": (ValueError("size 1 is unlucky"), "size 1 is unlucky"),
    "nan": (FloatingPointError("the loss became nan at step 3"), "the loss became nan at step 3"),
    "memory": (MemoryError("no room"), "no room"),
    "a key, whose text is only the key": (KeyError("lost"), "KeyError"),
    "no words": (AssertionError(), "AssertionError"),
    "many lines": (RuntimeError("first line\nsecond line\n\nthird"), "first line"),
}


@pytest.mark.parametrize("workers", [1, 4])
@pytest.mark.parametrize("name", ERRORS)
def test_a_run_that_fails_is_told_and_tried_again_while_the_others_go_on(tmp_path, name, workers):
    error, told = ERRORS[name]

    def trouble(config, seed, watch):
        if (config.size, seed) == (1, 0):
            raise error

    runs = worklist()
    bad = runs[2].id
    outcome = sweep(runs, Counting(trouble), tmp_path, quiet(), place=threads(workers))
    assert (outcome.done, outcome.skipped) == (5, 0)
    assert len(outcome.failed) == 1
    assert outcome.failed[0].startswith(f"{bad}: ")
    assert "\n" not in outcome.failed[0], "a line for each that failed"
    assert told in outcome.failed[0]
    written = (tmp_path / f"{bad}.error").read_text()
    assert written.startswith("Traceback")
    assert type(error).__name__ in written
    assert "in trouble" in written, "the traceback reaches the line that raised"
    assert str(error) in written
    assert facts(tmp_path) == expected([run for run in runs if run.id != bad])

    before, counting = contents(tmp_path), Counting()
    assert sweep(runs, counting, tmp_path, quiet(), place=threads(workers)) == Outcome(1, 5, [])
    assert counting.asked == [(1, 0)]
    assert not list(tmp_path.glob("*.error")), "the error is over"
    assert facts(tmp_path) == expected(runs)
    after = contents(tmp_path)
    assert all(after[name] == before[name] for name in before if name.endswith(".json"))


def test_an_error_that_stays_is_told_again(tmp_path):
    def trouble(config, seed, watch):
        raise ValueError("still")

    for _ in range(2):
        outcome = sweep(worklist(), Counting(trouble), tmp_path, quiet())
        assert (outcome.done, outcome.skipped, len(outcome.failed)) == (0, 0, 6)
        assert len(list(tmp_path.glob("*.error"))) == 6
        assert facts(tmp_path) == {}


def test_measurements_that_json_cannot_hold_are_a_failure_of_that_run(tmp_path):
    outcome = sweep(worklist(1, 1), lambda *_: {"measurements": {"set": {1}}}, tmp_path, quiet())
    assert outcome.done == 0
    assert "cannot hold" in outcome.failed[0]
    assert facts(tmp_path) == {}


@pytest.fixture
def ctrl_c():
    """Python's own answer to Ctrl-C: a shell starts what runs in its background with the signal ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize("workers", [1, 2])
def test_ctrl_c_stops_soon_and_the_rerun_completes(tmp_path, workers, ctrl_c):
    runs, late, sent = worklist(10), [], threading.Lock()

    def slow_after_three(config, seed, watch):
        # Once: a second one would end this process.
        if len(counting.asked) >= 4 and sent.acquire(blocking=False):
            signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
        if len(counting.asked) >= 4:
            for tick in range(1500):
                time.sleep(0.01)
                watch("waiting", tick, 1500)
            late.append((config.size, seed))  # a run that took no notice

    counting = Counting(slow_after_three)
    with pytest.raises(KeyboardInterrupt):
        sweep(runs, counting, tmp_path, quiet(), place=threads(workers))
    assert late == [], "it waits no longer than to the next `watch`"
    assert len(counting.asked) <= 3 + workers, "runs that had not begun are not begun"
    finished = facts(tmp_path)
    assert 3 - workers <= len(finished) <= 3
    assert not list(tmp_path.glob("*.error")), "being stopped is not a failure"
    before = contents(tmp_path)
    outcome = sweep(runs, perform, tmp_path, quiet(), place=threads(workers))
    assert outcome == Outcome(len(runs) - len(finished), len(finished), [])
    assert facts(tmp_path) == expected(runs)
    after = contents(tmp_path)
    assert {name: after[name] for name in before} == before


def test_a_run_cannot_swallow_the_stop(tmp_path, ctrl_c):
    ignored = []

    def stubborn(config, seed, watch):
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
        for tick in range(1500):
            time.sleep(0.01)
            try:
                watch("waiting", tick, 1500)
            except Exception:
                ignored.append(tick)

    with pytest.raises(KeyboardInterrupt):
        sweep(worklist(1, 1), Counting(stubborn), tmp_path, quiet(), place=threads(1))
    assert ignored == []
    assert facts(tmp_path) == {}


def test_watch_may_be_called_from_many_threads_while_runs_come_and_go(tmp_path):
    errors = []

    def crowd(config, seed, watch):
        def talk(phase):
            try:
                for tick in range(12):
                    watch(f"phase {phase} {tick % 3}", tick, 12)
            except BaseException as error:
                errors.append(error)

        threads = [threading.Thread(target=talk, args=(phase,)) for phase in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    console = Console(file=io.StringIO(), force_terminal=True, width=120)
    assert sweep(worklist(4), Counting(crowd), tmp_path, console, place=threads(4)) == Outcome(8, 0, [])
    assert errors == []
    assert facts(tmp_path) == expected(worklist(4))


@pytest.mark.parametrize("fails", [False, True])
def test_a_console_that_is_no_terminal_stays_quiet(tmp_path, fails, capfd):
    def trouble(config, seed, watch):
        time.sleep(0.05)
        if fails:
            raise ValueError("no")

    console = quiet()
    sweep(worklist(), Counting(trouble), tmp_path, console)
    assert console.file.getvalue() == ""
    assert capfd.readouterr() == ("", "")


def test_a_terminal_shows_a_live_bar_with_the_phase_a_rate_and_the_time_left(tmp_path):
    def ticking(config, seed, watch):
        for tick in range(40):
            watch("phase of ticks", tick, 80)
            time.sleep(0.01)
        watch("phase of ticks", 80, 80)
        time.sleep(0.3)

    console = Console(file=io.StringIO(), force_terminal=True, width=120)
    sweep(worklist(1), perform, tmp_path, quiet())
    sweep(worklist(2), Counting(ticking), tmp_path, console, place=threads(1))
    shown = console.file.getvalue()
    assert re.search(r"80/80.*compiling what follows", shown), "a phase that is done has no time left"
    assert "\x1b[" in shown
    lines = re.split(r"[\r\n]+", re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown))
    phase = [line for line in lines if line.startswith("phase of ticks")]
    assert any(re.search(r"\d+/80 +[\d.,]+/s +0:00:0\d left 0:00:0\d", line) for line in phase), phase[-3:]
    runs = [line for line in lines if line.startswith("runs ")]
    assert re.search(r" 2/4 ", runs[0]), "runs that were there already count as done"
    assert re.search(r" 4/4 ", runs[-1])


def full_disk(*_, **__):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), RuntimeError("no")])
def test_an_error_file_that_cannot_be_written_or_removed_stops_nothing(tmp_path, monkeypatch, error):
    runs, write = worklist(), results.write_atomically

    def cannot(path, *rest, **named):
        if path.suffix == ".error":
            raise error
        return write(path, *rest, **named)

    def trouble(config, seed, watch):
        if (config.size, seed) == (1, 0):
            raise ValueError("the reason")

    monkeypatch.setattr(results, "write_atomically", cannot)
    outcome = sweep(runs, Counting(trouble), tmp_path, quiet())
    assert outcome == Outcome(
        5, 0, [f"{runs[2].id}: ValueError: the reason (its traceback could not be written: {error})"]
    )
    (tmp_path / f"{runs[2].id}.error").mkdir()  # neither can it be removed
    assert sweep(runs, perform, tmp_path, quiet()) == Outcome(1, 5, [])
    assert facts(tmp_path) == expected(runs)


def test_a_full_disk_fails_the_runs_that_need_room_and_the_rerun_completes(tmp_path, monkeypatch):
    runs, fsync, synced = worklist(), os.fsync, []

    def full_from_the_third(handle):
        synced.append(handle)
        if len(synced) > 2:
            full_disk()
        fsync(handle)

    monkeypatch.setattr(os, "fsync", full_from_the_third)
    outcome = sweep(runs, perform, tmp_path, quiet(), place=threads(1))
    assert (outcome.done, len(outcome.failed)) == (2, 4)
    assert all("No space left" in line for line in outcome.failed)
    monkeypatch.undo()
    assert sweep(runs, perform, tmp_path, quiet()) == Outcome(4, 2, [])
    assert facts(tmp_path) == expected(runs)
    assert len(list(tmp_path.iterdir())) == len(runs), "nothing half written is left"


def test_a_small_disk_that_fills_up(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("this user cannot mount a small disk; ENOSPC is tried by the test above all the same")
    try:
        runs, room = worklist(), disk / "somebody's"
        room.write_bytes(bytes(48 * 1024))
        outcome = sweep(runs, perform, disk / "sweep", quiet(), place=threads(2))
        assert 0 < outcome.done < 6 and all("No space left" in line for line in outcome.failed)
        assert len(facts(disk / "sweep")) == outcome.done
        room.unlink()
        assert sweep(runs, perform, disk / "sweep", quiet()).failed == []
        assert facts(disk / "sweep") == expected(runs)
    finally:
        subprocess.run(["umount", disk], check=True)


def test_a_folder_that_cannot_be_written_any_more_is_told_run_by_run(tmp_path):
    folder = tmp_path / "sweep"
    folder.write_text("a file in the way")
    outcome = sweep(worklist(), perform, folder, quiet())
    assert (outcome.done, len(outcome.failed)) == (0, 6)
    assert all("could not be written" in line for line in outcome.failed)
    assert folder.read_text() == "a file in the way"


def test_a_loss_that_is_nan_fails_its_run_and_says_where(tmp_path, small, lively):
    task = small("injury")
    model, key = lively(task, layers=1), jax.random.key(0)

    def diverging(run, folder, watch):
        rate = (2e-3, 1e30)[run.config.size]
        schedule = Schedule(steps=4, batch=8, units=2, learning_rate=rate)
        history = train(key, model, task, schedule, checkpoint=state_file(folder, "a"))[1]
        return {"measurements": {"loss": history.loss}}

    runs = worklist(2, 1)
    outcome = sweep(runs, diverging, tmp_path, quiet(), place=threads(1))
    assert outcome.done == 1
    assert outcome.failed[0].startswith(f"{runs[1].id}: FloatingPointError: the loss became nan at step")
    assert [path.name for path in tmp_path.glob("*.json")] == [f"{runs[0].id}.json"]


def test_what_only_unfinished_work_needs_is_removed_at_the_end(tmp_path):
    runs, folder = worklist(), tmp_path / "records"
    own, part = state_file(folder, runs[5].id), state_file(folder, f"{runs[5].id}-clean")
    half = own.with_name(f".{own.name}.0123456789abcdef")  # what a kill leaves of a checkpoint
    made, unmade = state_file(folder, "plain-seed0-made"), state_file(folder, "plain-seed0-unmade")
    (tmp_path / "models").mkdir()
    for name in ("plain-seed0-made.json", "plain-seed0-made.safetensors", "plain-seed0-made.lock"):
        (tmp_path / "models" / name).touch()

    def keeping(run, folder, watch):
        for file in (own, part, half, made, unmade):
            checkpoints.save(file, "me", [run.seed])
        if (run.config.size, run.seed) == (2, 1) and not failed:
            failed.append(run)
            raise ValueError("later")
        return perform(run, folder, watch)

    failed = []
    sweep(runs, keeping, folder, quiet(), place=threads(1))
    assert all(file.exists() for file in (own, part, half, made, unmade)), "a run is missing, and may want it"
    (folder / f"{runs[0].id}.lock").touch()  # what a kill leaves
    with hold(tmp_path / "models" / "plain-seed0-made"):
        sweep(runs, keeping, folder, quiet())
        assert held(tmp_path / "models" / "plain-seed0-made"), "somebody is at work on it"
    (tmp_path / "models" / "plain-seed0-made.lock").touch()
    halves = [folder / f".{runs[0].id}.json.0123456789abcdef", folder / f".{runs[1].id}.error.0123456789abcdef"]
    halves.append(tmp_path / "models" / ".plain-seed0-made.safetensors.0123456789abcdef")
    theirs = [folder / ".mine.json.0123456789abcdef", tmp_path / "models" / ".hidden"]
    for path in (*halves, *theirs):
        path.touch()
    sweep(runs, keeping, folder, quiet())
    assert [path.exists() for path in (*halves, *theirs)] == [False] * 3 + [True] * 2
    theirs[0].unlink()
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert files == {*(f"{run.id}.json" for run in runs), "checkpoints/plain-seed0-unmade.npz"}, "another may want it"
    assert not (tmp_path / "models" / "plain-seed0-made.lock").exists()
    unmade.unlink()
    checkpoints.save(own, "me", [1])
    sweep(runs, keeping, folder, quiet())
    assert sorted(path.name for path in folder.iterdir()) == sorted(f"{run.id}.json" for run in runs)


def test_a_finished_sweep_removes_nothing_of_others(tmp_path):
    runs, folder, outside = worklist(1, 1), tmp_path / "records", tmp_path / "outside"
    theirs = [
        folder / "uv.lock", folder / "sub" / "poetry.lock", folder / "sub" / f"{runs[0].id}.lock",
        folder / "other-seed0-0123456789ab.lock", folder / "checkpoints" / "epoch-7.npz",
        folder / "checkpoints" / "notes.txt", folder / "checkpoints" / "deep" / f"{runs[0].id}.npz",
        tmp_path / "models" / "uv.lock", tmp_path / "models" / "uv.json",
        outside / f"{runs[0].id}.npz", outside / "lock",
    ]  # fmt: skip
    for path in theirs:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("mine")
    assert sweep(runs, perform, folder, quiet()).failed == []
    assert [path.read_text() for path in theirs] == ["mine"] * len(theirs)


def test_tidying_follows_no_link(tmp_path):
    runs, folder, outside = worklist(1, 1), tmp_path / "records", tmp_path / "outside"
    mine = [
        outside / f"{runs[0].id}.npz",
        outside / "plain.lock",
        outside / "plain.json",
        outside / "plain.safetensors",
    ]
    for path in mine:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("mine")
    folder.mkdir()
    (folder / "checkpoints").symlink_to(outside)
    (tmp_path / "models").symlink_to(outside)
    assert sweep(runs, perform, folder, quiet()).failed == []
    assert [path.read_text() for path in mine] == ["mine"] * len(mine)
    # A lock file that is a link is nobody's lock: the run is told, and what it leads to is not made or removed.
    (folder / f"{runs[0].id}.json").unlink()
    (folder / f"{runs[0].id}.lock").symlink_to(outside / "made")
    [failure] = sweep(runs, perform, folder, quiet()).failed
    assert failure.startswith(runs[0].id) and not (outside / "made").exists()


@pytest.mark.parametrize("parts", [{"seed": 9}, {"experiment": "f"}, {"measurements": [1]}, {"models": {}}])
def test_a_run_whose_parts_make_no_record_fails_and_writes_none(tmp_path, parts):
    def odd(run, folder, watch):
        return perform(run, folder, watch) | parts if parts != {"models": {}} else parts

    [failure] = sweep(worklist(1, 1), odd, tmp_path, quiet()).failed
    assert "ValueError" in failure and not list(tmp_path.glob("*.json"))


def test_in_another_thread_and_for_a_signal_that_is_ignored_no_handler_is_set(tmp_path):
    seen = []

    def look(config, seed, watch):
        seen.append([signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)])

    def looked(folder):
        sweep(worklist(1, 1), Counting(look), tmp_path / folder, quiet(), place=threads(1))
        return seen.pop()

    before = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)]
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(looked, "thread").result() == before
    ignored = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        interrupt, terminate = looked("ignored")
        assert interrupt is signal.SIG_IGN and terminate not in before
    finally:
        signal.signal(signal.SIGINT, ignored)
    assert [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)] == before


def test_the_status_of_a_folder(tmp_path):
    def trouble(config, seed, watch):
        if (config.size, seed) == (1, 0):
            raise ValueError("first line\nlast line")

    runs, other = worklist(), Run("fake", Config(9), 0)
    sweep([*runs[:3], other], Counting(trouble), tmp_path, quiet())
    (tmp_path / "notes.json").write_text("{}")
    with hold(tmp_path / runs[3].id):
        before = contents(tmp_path)
        held = status(runs, tmp_path)
        assert contents(tmp_path) == before
    assert held == {
        "done": [run.id for run in runs[:2]],
        "running": [runs[3].id],
        "failed": [f"{runs[2].id}: last line"],
        "missing": [run.id for run in runs[4:]],
        "of other worklists": [other.id],
        "foreign": [f"skipped {tmp_path / 'notes.json'}: not a record of this testbed"],
    }
    assert status(runs, tmp_path / "nowhere")["missing"] == [run.id for run in runs]


def test_a_folder_is_the_same_wherever_the_work_is_done(tmp_path, monkeypatch):
    def elsewhere(work, watch):
        monkeypatch.chdir("/")  # as a cluster's workers begin
        return work(watch)

    monkeypatch.chdir(tmp_path)
    assert sweep(worklist(1, 1), perform, Path("here"), quiet(), place=nullcontext(Place(1, elsewhere))).failed == []
    assert len(facts(tmp_path / "here")) == 1


def test_a_record_from_a_machine_with_another_disk_is_written_here(tmp_path):
    runs = worklist(2, 1)
    far = Place(2, lambda work, watch: work.func(*work.args[:2], tmp_path / "far", watch))
    assert sweep(runs, perform, tmp_path / "near", quiet(), place=nullcontext(far)) == Outcome(2, 0, [])
    assert facts(tmp_path / "near") == facts(tmp_path / "far") == expected(runs)


def forked(work) -> int:
    """Run `work` in a fork of this process; returns its exit status, or minus the signal that ended it."""
    child = os.fork()
    if not child:
        status = 99
        try:
            work()
            status = 0
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def killed_sweep(folder: Path, runs: list[Run], fatal_line: int, workers: int) -> None:
    """Sweep, and die by SIGKILL when the given number of lines of this project have been executed."""
    executed = 0

    def trace(frame, event, _):
        nonlocal executed
        if not frame.f_code.co_filename.startswith(str(ROOT)):
            return None
        if event == "line":
            executed += 1
            if executed == fatal_line:
                os.kill(os.getpid(), signal.SIGKILL)
        return trace

    threading.settrace(trace)
    sys.settrace(trace)
    sweep(runs, perform, folder, quiet(), place=threads(workers))


def kill_everywhere(base: Path, runs: list[Run], workers: int, stride: int) -> dict:
    """Kill a sweep at every `stride`-th line; report what was wrong after a kill or after the rerun."""
    stand_alone()
    truth, wrong, recorded, line = expected(runs), [], [], 1
    while True:
        folder = base / f"{workers}-{line}"
        status = forked(lambda folder=folder, line=line: killed_sweep(folder, runs, line, workers))
        there, problems = results.read(folder)
        whole = {run: {k: v for k, v in there[run].items() if k in truth[run]} == truth[run] for run in there}
        if status not in (0, -signal.SIGKILL) or problems or not all(whole.values()):
            wrong.append(f"killed at line {line}: status {status}, {problems}, whole: {whole}")
        recorded.append(len(there))
        outcome = sweep(runs, perform, folder, quiet(), place=threads(workers))
        if outcome != Outcome(len(runs) - len(there), len(there), []) or facts(folder) != truth:
            wrong.append(f"rerun after line {line}: {outcome}")
        if list(folder.glob("*.error")) or list(folder.glob("*.lock")):
            wrong.append(f"rerun after line {line}: an error or a lock is left")
        if status == 0:
            return {"kills": len(recorded) - 1, "recorded": sorted(set(recorded)), "wrong": wrong}
        line += stride


def together(folder: Path, runs: list[Run], sweeps: int = 3) -> list[int]:
    """Sweep the same runs in the same folder from several processes at once; returns their exit statuses."""
    gate, opener = os.pipe()
    children = []
    for _ in range(sweeps):
        child = os.fork()
        if not child:
            os.close(opener)
            os.read(gate, 1)  # returns when the parent closes its end
            outcome = sweep(runs, Counting(lambda *_: time.sleep(0.002)), folder, quiet(), place=threads(2))
            os._exit(0 if not outcome.failed and outcome.done + outcome.skipped == len(runs) else 1)
        children.append(child)
    os.close(gate)
    os.close(opener)
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


def interrupted(folder: Path, runs: list[Run]) -> dict:
    """Send SIGINT to a sweep in another process while it is at a run; report how it ended, and what it had done."""

    def slow(config, seed, watch):
        for tick in range(1500):
            watch("waiting", tick, 1500)
            time.sleep(0.01)

    def work():
        signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            sweep(runs, Counting(slow), folder, quiet(), place=threads(2))
        except KeyboardInterrupt:
            os._exit(42)

    child = os.fork()
    if not child:
        work()
        os._exit(0)
    while not held(folder / runs[0].id):
        time.sleep(0.01)
    os.kill(child, signal.SIGINT)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return {"status": status, "records": len(facts(folder))}


def lost(folder: Path, runs: list[Run], name: str) -> dict:
    """A sweep whose signal comes while Python collects garbage; how it ended, what it recorded, and wrote to stderr.

    A KeyboardInterrupt that is raised there, as by Python's own handler, is written to stderr, and is gone.
    """
    collected, waited = [], time.sleep

    def callback(phase, info):
        if collected and threading.current_thread() is threading.main_thread():
            collected.pop()
            signal.raise_signal(getattr(signal, name))
            for _ in range(1000):
                pass

    def sleep(seconds):
        collected.append(1)
        gc.collect()
        waited(min(seconds, 0.1))

    def work():
        os.dup2(os.open(said, os.O_WRONLY | os.O_CREAT), 2)
        for each in (signal.SIGINT, signal.SIGTERM):
            signal.signal(each, signal.default_int_handler)
        threading.Timer(600, os._exit, [7]).start()
        time.sleep = sleep
        gc.callbacks.append(callback)
        with hold(folder / runs[1].id):  # as another sweep is at it, this one waits, and sleeps
            try:
                sweep(runs, perform, folder, quiet())
            except KeyboardInterrupt:
                kept = signal.getsignal(signal.SIGINT) is signal.getsignal(signal.SIGTERM) is signal.default_int_handler
                os._exit(42 if kept else 43)

    said = folder.with_suffix(".said")
    return {"status": forked(work), "records": list(facts(folder)), "said": said.read_text()}


def deaf(folder: Path, runs: list[Run]) -> int:
    """How a sweep ends to which Ctrl-C comes twice, while a run does not call `watch`."""

    def work():
        signal.signal(signal.SIGINT, signal.default_int_handler)
        sweep(runs, unheard, folder, quiet(), place=threads(1))

    def unheard(run, folder, watch):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(1.0)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(600.0)

    return forked(work)


def stand_alone() -> None:
    """Keep JAX, which provenance would ask, from starting in a process that forks."""
    provenance.here = lambda: {"revision": "none"}


def ends_of_sweeps(home: Path) -> dict:
    """Sweeps side by side, and sweeps that are sent signals: how they end."""
    stand_alone()
    two, many = worklist(2, 1), worklist(10)
    statuses = together(home / "together", many)
    right, files = facts(home / "together") == expected(many), len(list((home / "together").iterdir()))
    return {
        "together": {"statuses": statuses, "right": right, "files": files},
        "interrupted": interrupted(home / "interrupted", many),
        "lost": {name: lost(home / name, two, name) for name in ("SIGINT", "SIGTERM")},
        "deaf": deaf(home / "deaf", two),
    }


@pytest.fixture(scope="module")
def aftermath(tmp_path_factory):
    """What a child process saw."""
    return in_child(ends_of_sweeps, tmp_path_factory.mktemp("ended"))


@pytest.mark.parametrize(("workers", "stride"), [(1, 71), slow(2, 101)])
def test_a_sweep_killed_at_any_line_is_completed_by_the_same_command(tmp_path, workers, stride):
    seen = in_child(kill_everywhere, tmp_path, worklist(3, 1), workers, stride)
    assert seen["wrong"] == []
    assert seen["recorded"] == [0, 1, 2, 3], "it was killed before, between and after the records"
    assert seen["kills"] >= 20


def test_sweeps_that_share_a_folder_do_not_disturb_each_other(aftermath):
    assert aftermath["together"] == {"statuses": [0, 0, 0], "right": True, "files": 20}


def test_a_signal_from_outside_stops_a_sweep_soon(aftermath):
    assert aftermath["interrupted"] == {"status": 42, "records": 0}, "no run is waited for"


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_a_signal_that_falls_into_a_callback_is_not_lost(aftermath, name):
    """What is finished is recorded, and the handlers of before are back."""
    assert aftermath["lost"][name] == {"status": 42, "records": [worklist(2, 1)[0].id], "said": ""}


def test_a_second_ctrl_c_kills(aftermath):
    """A run that never calls `watch` cannot be stopped; a first Ctrl-C waits for it."""
    assert aftermath["deaf"] == -signal.SIGINT


@pytest.mark.parametrize(
    ("held", "allowed", "again"),
    [(43_531, "65530", True), (43_530, "65530", False), (42_001, None, True), (42_000, None, False), (11, "40", True)],
)
def test_programs_are_dropped_between_runs_once_they_hold_too_many_memory_maps(
    held, allowed, again, tmp_path, monkeypatch
):
    maps, limit = tmp_path / "maps", tmp_path / "max_map_count"
    maps.write_text(held * "7f00-7f01 r--p\n")
    if allowed:
        limit.write_text(f"{allowed}\n")
    monkeypatch.setattr("testbed.runs.sweep.MAPS", maps)
    monkeypatch.setattr("testbed.runs.sweep.MAPS_ALLOWED", limit)
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    traced = []
    program = jax.jit(lambda x: traced.append(x) or x + 1)
    console = Console(file=io.StringIO())
    sweep(
        worklist(2, 1),
        lambda *_: {"measurements": {"x": float(program(1.0))}},
        tmp_path / "out",
        console,
        place=threads(1),
    )
    assert len(traced) == (2 if again else 1)


def test_a_run_without_room_for_its_programs_fails_in_one_line(tmp_path, monkeypatch):
    """Where maps run out, LLVM says `Cannot allocate memory`, and the whole process dies of a segmentation fault."""
    maps, limit = tmp_path / "maps", tmp_path / "max_map_count"
    limit.write_text("65530\n")
    monkeypatch.setattr("testbed.runs.sweep.MAPS", maps)
    monkeypatch.setattr("testbed.runs.sweep.MAPS_ALLOWED", limit)
    monkeypatch.setattr("jax.clear_caches", lambda: None)  # the tests after this one want theirs
    maps.write_text(56_531 * "7f00-7f01 r--p\n")
    [failure] = sweep(worklist(1, 1), perform, tmp_path / "out", quiet(), place=threads(1)).failed
    assert failure.endswith(
        "MemoryError: the process holds 56,531 of 65,530 memory maps, and a run may need 9,000; "
        "raise sysctl vm.max_map_count, or use --launcher=processes"
    )
    maps.write_text(56_530 * "7f00-7f01 r--p\n")
    assert sweep(worklist(1, 1), perform, tmp_path / "out", quiet(), place=threads(1)).failed == []


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells")
def test_linux_tells_how_many_maps_a_process_holds_and_may_hold():
    assert 0 < MAPS.read_bytes().count(b"\n") < int(MAPS_ALLOWED.read_text())
