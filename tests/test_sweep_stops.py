"""Sweeps that are stopped, killed or shared end with the same records.

A child process forks the sweeps that are killed at each line they execute: one that has not started JAX.
"""

import gc
import os
import signal
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from children import forked, in_child
from conftest import slow
from sweeping import Counting, contents, expected, facts, perform, quiet, worklist

from testbed.runs import provenance, results
from testbed.runs.launchers import threads
from testbed.runs.locks import held, hold
from testbed.runs.sweep import Outcome, Run, sweep

ROOT = Path(__file__).parents[1]


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


@pytest.mark.parametrize("taken", [threading.main_thread, threading.current_thread])
def test_a_run_cannot_swallow_the_stop(tmp_path, ctrl_c, taken):
    """Nor does it matter which thread takes the signal: only the main one wakes by it."""
    ignored = []

    def stubborn(config, seed, watch):
        signal.pthread_kill(taken().ident, signal.SIGINT)
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
        [status] = forked(lambda folder=folder, line=line: killed_sweep(folder, runs, line, workers))
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

    def work() -> bool:
        outcome = sweep(runs, Counting(lambda *_: time.sleep(0.002)), folder, quiet(), place=threads(2))
        return bool(outcome.failed) or outcome.done + outcome.skipped != len(runs)

    return forked(*[work] * sweeps)


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
    return {"status": forked(work)[0], "records": list(facts(folder)), "said": said.read_text()}


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

    [status] = forked(work)
    return status


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
