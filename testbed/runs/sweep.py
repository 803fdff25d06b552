"""A sweep: a worklist of runs, each done once, written once, and skipped when it is there already.

`do` is one run, wherever it is done. A run belongs to whoever holds its claim, so sweeps may share a folder.
"""

import contextlib
import os
import shutil
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import asdict
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
from rich.console import Console

from testbed.runs import results
from testbed.runs.board import live_board, show_phase, show_tally
from testbed.runs.launchers.local import threads
from testbed.runs.launchers.place import Place
from testbed.runs.locks import claim, claimed
from testbed.watch import Watch

CHECKPOINTS = "checkpoints"  # the folder, beside the records, of what unfinished runs keep
MAPS = Path("/proc/self/maps")
MAPS_ALLOWED = Path("/proc/sys/vm/max_map_count")
POLL = 1.0  # seconds between two looks at runs that another sweep is at


class Run(NamedTuple):
    """One run of a sweep: what is measured is a pure function of these three."""

    experiment: str
    config: Any
    seed: int

    @property
    def id(self) -> str:
        """The name of its record."""
        return results.run_id(*self)


class Outcome(NamedTuple):
    """How a sweep went: runs done now, runs that were there already, and a line for each that failed."""

    done: int
    skipped: int
    failed: list[str]


class Ended(NamedTuple):
    """How one run went: its record, or a line why it failed, or neither while another process is at it."""

    record: dict[str, Any] | None = None
    failure: str = ""


class _Stopped(BaseException):
    """Raised inside a worker when the user stops the sweep; no run may catch it."""


@cache
def _source() -> dict[str, Any]:
    """Where this process's numbers come from: asked once, since its code stays what it was when it began."""
    return results.provenance()


def do(run: Run, measure: Callable[..., dict], folder: Path, watch: Watch) -> Ended:
    """Do a run and write its record, unless it is there or another holds the claim on it. A failure is a result, too.

    A run that fails leaves its traceback in `<id>.error`, until it succeeds.
    """
    path = folder / f"{run.id}.json"
    try:
        with claim(folder / run.id) as ours:
            return _claimed(run, measure, path, watch) if ours else Ended()
    except OSError as error:  # of the claim itself
        return _failed(path, error)


def _claimed(run: Run, measure: Callable[..., dict], path: Path, watch: Watch) -> Ended:
    try:
        if path.exists():
            return Ended(results.read_record(path))
        if crowded():
            jax.clear_caches()  # past the limit the whole process would abort
        source, started = _source(), time.perf_counter()
        measurements = measure(run.config, run.seed, path.parent, watch)
        seconds = round(time.perf_counter() - started, 2)
        record = {"experiment": run.experiment, "config": asdict(run.config), "seed": run.seed}
        record |= {"measurements": measurements, "seconds": seconds, "provenance": source | results.now()}
        results.write(path.parent, run.id, record)
        with contextlib.suppress(OSError):
            path.with_suffix(".error").unlink(missing_ok=True)
        return Ended(results.read_record(path))
    except Exception as error:
        return _failed(path, error)


def crowded(share: float = 1.0) -> bool:
    """Whether compiled programs hold more than this share of the memory maps that they may before a run begins.

    They may hold what this system allows a process (64,000 where it does not say) less 11,000 for each run beside, one
    a core; but a quarter in any case. A run that compiles all that it needs was seen to add 9,000.
    """
    if not MAPS.exists():
        return False
    allowed = int(MAPS_ALLOWED.read_text()) if MAPS_ALLOWED.exists() else 64_000
    most = max(allowed // 4, allowed - 11_000 * (os.cpu_count() or 1))
    return MAPS.read_bytes().count(b"\n") > share * most


def _failed(path: Path, error: Exception) -> Ended:
    """Tell in one line why the record `path` was not written, and leave the traceback beside it if that can be done."""
    failure = f"{path.stem}: {traceback.format_exception_only(error)[-1].strip().splitlines()[0]}"
    try:
        results.write_atomically(path.with_suffix(".error"), "".join(traceback.format_exception(error)).encode())
    except Exception as why:  # the disk may be full, and that the very reason
        failure += f" (its traceback could not be written: {why})"
    return Ended(failure=failure)


def sweep(
    runs: Sequence[Run],
    measure: Callable[..., dict],
    folder: Path,
    console: Console,
    place: AbstractContextManager[Place] | None = None,
) -> Outcome:
    """Do the runs that `folder` has no record of, and write a record for each as soon as it is done.

    Runs that fail are tried again by the next sweep; the others go on. Stopped or killed anywhere, the same sweep
    started again ends with the same records. Runs that another sweep is at are waited for, and taken over if it dies.

    Args:
      measure: `(config, seed, folder, watch) -> plain numbers`; `watch(phase, done, total)` feeds the board.
      place: where the runs are done (`testbed.runs.launchers`); threads of this process by default.
    """
    there, _ = results.read(folder)
    runs = {run.id: run for run in runs}.values()
    missing = [run for run in runs if run.id not in there]
    stop, failed, elsewhere = threading.Event(), [], []
    with place or threads() as (width, do_there), live_board(console) as board, ThreadPoolExecutor(width) as pool:
        overall = board.add_task("runs", total=len(runs), completed=len(runs) - len(missing))

        def one(run: Run) -> Ended:
            path = folder / f"{run.id}.json"
            if claimed(folder / run.id):
                return Ended()
            line = board.add_task("starting", total=None)
            show_tally(board, overall, len(failed), len(elsewhere))

            def watch(phase, done, total):
                if stop.is_set():
                    raise _Stopped
                show_phase(board, line, phase, done, total)

            try:
                # Elsewhere the working directory may be another.
                ended = do_there(partial(do, run, measure, folder.absolute()), watch)
                if ended.record and not path.exists():  # it was done on a machine with a disk of its own
                    results.write(folder, run.id, ended.record)
            except Exception as error:
                ended = _failed(path, error)
            finally:
                board.remove_task(line)
            failed.extend([ended.failure] if ended.failure else [])
            board.advance(overall, ended != Ended())
            show_tally(board, overall, len(failed), len(elsewhere))
            return ended

        try:
            waiting = missing
            while waiting:
                ended = list(pool.map(one, waiting))
                waiting = elsewhere[:] = [run for run, how in zip(waiting, ended, strict=True) if how == Ended()]
                time.sleep(POLL if waiting else 0)
        except BaseException:
            stop.set()
            pool.shutdown(cancel_futures=True)
            raise
    if not failed:
        _tidy(folder)
    return Outcome(len(missing) - len(failed), len(runs) - len(missing), sorted(failed))


def kept(folder: Path, name: str) -> Path:
    """The file in which a run may keep what it would lose (`runs.checkpoints`); removed when the sweep is done."""
    return folder / CHECKPOINTS / f"{name}.npz"


def _tidy(folder: Path) -> None:
    """Remove what only unfinished work needs, unless somebody is at work in the folder."""
    claims = [lock.with_suffix("") for lock in folder.rglob("*.lock")]
    if not any(claimed(path) for path in claims):
        for path in claims:
            with contextlib.suppress(OSError), claim(path):  # giving it back removes the file that a kill left
                pass
        shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)


def status(runs: Sequence[Run], folder: Path) -> dict[str, list[str]]:
    """What a folder holds of a worklist (done, running, failed, missing), and what else lies there; a line each."""
    records, problems = results.read(folder)
    held = {"done": [], "running": [], "failed": [], "missing": []}
    for run in dict.fromkeys(run.id for run in runs):
        error = folder / f"{run}.error"
        if run in records:
            held["done"].append(run)
        elif claimed(folder / run):
            held["running"].append(run)
        elif error.exists():
            held["failed"].append(f"{run}: {' '.join(error.read_text().splitlines()[-1:])}")
        else:
            held["missing"].append(run)
    return held | {"of other worklists": [run for run in records if run not in held["done"]], "foreign": problems}
