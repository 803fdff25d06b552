"""A sweep: a worklist of runs, each done once, written once, and skipped when it is there already.

`do` is one run, wherever it is done. A run belongs to whoever holds its lock: sweeps may share a folder.
"""

import contextlib
import os
import re
import threading
import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
from rich.console import Console

from testbed.runs import provenance, results, signals
from testbed.runs.board import live_board, show_phase, show_tally
from testbed.runs.launchers.local import threads
from testbed.runs.launchers.place import Place
from testbed.runs.locks import held, hold
from testbed.watch import Watch

CHECKPOINTS = "checkpoints"  # the folder, beside the records, of what unfinished runs keep
MODELS = "models"  # the folder, beside that of the records, of the models that runs have made
MAPS_OF_A_RUN = 9_000  # that a run which compiles all that it needs was seen to add
MAPS_BESIDE = 11_000  # left to each run beside: some more
HALF_WRITTEN = r"\.(?P<name>.+)\.(json|error|safetensors)\.[0-9a-f]{16}"  # what a kill leaves of a file
# A file of a checkpoint, or what a kill leaves of one that was being written.
CHECKPOINT_FILE = r"\.?(?P<name>.+)\.npz(\.[0-9a-f]{16})?"
BY_SWEEP = {"experiment", "config", "omitted", "seed", "sources", "seconds", "provenance"}
MAPS = Path("/proc/self/maps")
MAPS_ALLOWED = Path("/proc/sys/vm/max_map_count")
POLL = 1.0  # seconds between two looks: at runs that another sweep is at, and at signals


class Run(NamedTuple):
    """One run of a sweep: what is measured is a pure function of experiment, config and seed.

    `arm` and `task` say what it is called and what it is on, `together` of which seeds the models are made in one
    population, if not of its own alone. They are no part of its id.
    """

    experiment: str
    config: Any
    seed: int
    arm: str = ""
    task: str = ""
    together: tuple[int, ...] = ()

    @property
    def id(self) -> str:
        """The name of its record."""
        return results.run_id(self.experiment, self.config, self.seed)


class Outcome(NamedTuple):
    """How a sweep went: runs done now, runs that were there already, and a line for each that failed."""

    done: int
    skipped: int
    failed: list[str]


class Ended(NamedTuple):
    """How one run went: its record, or a line why it failed, or neither while another process is at it."""

    record: dict[str, Any] | None = None
    failure: str = ""


# How a run is done: `(run, folder, watch) -> parts`, the parts of the record that the run makes, as plain
# numbers: "measurements", and whatever else a question wants to keep. Pickled, where it travels.
Perform = Callable[["Run", Path, Watch], dict[str, Any]]


class _Stopped(BaseException):
    """Raised inside a worker when the user stops the sweep; no run may catch it."""


@cache
def _provenance() -> dict[str, Any]:
    """Where this process's numbers come from: asked once, since its code stays what it was when it began."""
    return provenance.here()


def do(run: Run, perform: Perform, folder: Path, watch: Watch) -> Ended:
    """Do a run and write its record, unless it is there or another holds its lock.

    A failure is a result, too. A run that fails leaves its traceback in `<id>.error`, until it succeeds.
    """
    path = folder / f"{run.id}.json"
    try:
        with hold(folder / run.id) as ours:
            return _do_locked(run, perform, path, watch) if ours else Ended()
    except OSError as error:  # of the lock itself
        return _failed(path, error)


def _do_locked(run: Run, perform: Perform, path: Path, watch: Watch) -> Ended:
    try:
        if (record := results.find(path.parent, run.id)) is not None:
            return Ended(record)
        make_room()
        told, started = _provenance(), time.perf_counter()
        parts = perform(run, path.parent, watch)
        seconds = round(time.perf_counter() - started, 2)
        if taken := BY_SWEEP & parts.keys():
            names = ", ".join(sorted(taken))
            raise ValueError(f"the sweep itself records {names}; give the run's part another name")
        record = results.described(run.experiment, run.config, run.seed) | parts
        record |= {"seconds": seconds, "provenance": told | provenance.now()}
        results.write(path.parent, run.id, record)
        with contextlib.suppress(OSError):
            path.with_suffix(".error").unlink(missing_ok=True)
        # Meanwhile it may have been packed; if it is nowhere, reading it says why.
        return Ended(results.find(path.parent, run.id) or results.read_record(path))
    except Exception as error:
        return _failed(path, error)


def _maps() -> tuple[int, int]:
    """Memory maps that this process holds, and those that it may hold: 64,000 where the system does not say."""
    if not MAPS.exists():
        return 0, 64_000
    return MAPS.read_bytes().count(b"\n"), int(MAPS_ALLOWED.read_text()) if MAPS_ALLOWED.exists() else 64_000


def crowded(share: float = 1.0) -> bool:
    """Whether compiled programs hold more than this share of the memory maps that they may before a run begins.

    They may hold what this system allows a process less `MAPS_BESIDE` for each run beside, one a core; but
    a quarter in any case.
    """
    held, allowed = _maps()
    return held > share * max(allowed // 4, allowed - MAPS_BESIDE * (os.cpu_count() or 1))


def make_room() -> None:
    """Forget what was compiled if it leaves too few memory maps: past the limit the whole process would die.

    Raises:
      MemoryError: something else holds them, so that forgetting does not help.
    """
    if not crowded():
        return
    jax.clear_caches()
    held, allowed = _maps()
    if held > max(allowed // 2, allowed - MAPS_OF_A_RUN):
        raise MemoryError(
            f"the process holds {held:,} of {allowed:,} memory maps, and a run may need {MAPS_OF_A_RUN:,}; "
            "raise sysctl vm.max_map_count, or use --launcher=processes"
        )


def _failed(path: Path, error: Exception) -> Ended:
    """Tell in one line why the record `path` was not written, and leave the traceback beside it if that can be done."""
    # What else a traceback's last part may hold are notes, of JAX for one.
    told = str(error).strip().splitlines()[:1]
    failure = ": ".join([path.stem, type(error).__name__, *told])
    try:
        results.write_atomically(path.with_suffix(".error"), "".join(traceback.format_exception(error)).encode())
    except Exception as why:  # the disk may be full, and that the very reason
        failure += f" (its traceback could not be written: {why})"
    return Ended(failure=failure)


def _all_of(futures: Sequence[Future[Ended]]) -> list[Ended]:
    """How runs ended, in their order; what one raises is raised at once.

    A wait without end could miss a signal: one that comes just before it is noted only after it.
    """
    while True:
        done, others = wait(futures, POLL, FIRST_EXCEPTION)
        raised = [future for future in done if future.exception() is not None]
        if raised or not others:
            return [future.result() for future in raised or futures]


def sweep(
    runs: Sequence[Run],
    perform: Perform,
    folder: Path,
    console: Console,
    *,
    place: AbstractContextManager[Place] | None = None,
) -> Outcome:
    """Do the runs that `folder` has no record of, and write a record for each as soon as it is done.

    Runs that fail are tried again by the next sweep; the others go on. Stopped or killed anywhere, the same sweep
    started again ends with the same records. Runs that another sweep is at are waited for, and taken over if it dies.

    Args:
      perform: makes the parts of a run's record; its `watch(phase, done, total)` feeds the board.
      place: where the runs are done (`testbed.runs.launchers`); threads of this process by default.

    Raises:
      KeyboardInterrupt: Ctrl-C or SIGTERM came; what is finished is recorded.
    """
    records, _ = results.read(folder)
    runs = list({run.id: run for run in runs}.values())
    missing = [run for run in runs if run.id not in records]
    stop, failed, elsewhere = threading.Event(), [], []
    with (
        place or threads() as (width, do_in_place),
        signals.noted() as caught,
        live_board(console) as board,
        ThreadPoolExecutor(width) as pool,
    ):
        overall = board.add_task("runs", total=len(runs), completed=len(runs) - len(missing))

        def go_on():
            if stop.is_set() or caught:
                raise _Stopped

        def one(run: Run) -> Ended:
            go_on()
            path = folder / f"{run.id}.json"
            if held(folder / run.id):
                return Ended()
            line = board.add_task("starting", total=None)
            show_tally(board, overall, len(failed), len(elsewhere))

            def watch(phase, done, total):
                go_on()
                show_phase(board, line, phase, done=done, total=total)

            try:
                # Elsewhere the working directory may be another.
                ended = do_in_place(partial(do, run, perform, folder.absolute()), watch)
                # Without a record here, it was done on a machine with a disk of its own.
                if ended.record and results.find(folder, run.id) is None:
                    results.write(folder, run.id, ended.record)
            except Exception as error:
                go_on()  # the signal may have ended the run's process, too: that is no failure
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
                ended = _all_of([pool.submit(one, run) for run in waiting])
                waiting = elsewhere[:] = [run for run, how in zip(waiting, ended, strict=True) if how == Ended()]
                time.sleep(POLL if waiting else 0)
        except BaseException as error:
            stop.set()
            pool.shutdown(cancel_futures=True)
            if not isinstance(error, _Stopped):
                raise
        if caught:
            raise KeyboardInterrupt
    if not failed:
        _tidy(runs, folder)
    return Outcome(len(missing) - len(failed), len(runs) - len(missing), sorted(failed))


def state_file(folder: Path, name: str) -> Path:
    """The file in which a run may keep what it would lose (`runs.checkpoints`).

    It is removed when the sweep is done, if its name is or begins with the run's id, or is that of
    a model that has been made.
    """
    return folder / CHECKPOINTS / f"{name}.npz"


def _tidy(runs: Sequence[Run], folder: Path) -> None:
    """Remove what only unfinished work needs: locks, checkpoints and half files of these runs, and of made models.

    Nothing else is touched, since it may be somebody's, and no link is followed.
    """
    ids, models = {run.id for run in runs}, folder.absolute().parent / MODELS
    made = {path.stem for path in models.glob("*.json") if path.with_suffix(".safetensors").exists()}
    _remove_free_locks(folder / run for run in ids)
    _remove_free_locks(models / name for name in made if not models.is_symlink())
    for place, names in ((folder, ids), (models, made)):
        for path in place.glob(".*") if not place.is_symlink() else ():
            half = re.fullmatch(HALF_WRITTEN, path.name)
            if half and half["name"] in names:
                with contextlib.suppress(OSError):
                    path.unlink()
    checkpoints = folder / CHECKPOINTS
    if not checkpoints.is_dir() or checkpoints.is_symlink():
        return
    for path in checkpoints.iterdir():
        named = re.fullmatch(CHECKPOINT_FILE, path.name)
        name = named["name"] if named else ""
        if name in made or any(name == run or name.startswith(f"{run}-") for run in ids):
            with contextlib.suppress(OSError):
                path.unlink()
    with contextlib.suppress(OSError):  # it is not empty
        checkpoints.rmdir()


def _remove_free_locks(paths: Iterable[Path]) -> None:
    """Remove the lock files that kills have left beside paths."""
    for path in paths:
        lock = path.with_name(f"{path.name}.lock")
        if lock.is_file() and not lock.is_symlink():
            with contextlib.suppress(OSError), hold(path):  # giving it back removes the file
                pass


def _last_line(error: Path) -> str:
    """The last line of a traceback that a run left, or why it cannot be read: another may lie there."""
    try:
        lines = results.read_regular(error).decode(errors="replace").splitlines()
    except OSError as why:
        return f"its traceback cannot be read ({why})"
    return " ".join(lines[-1:])


def status(runs: Sequence[Run], folder: Path) -> dict[str, list[str]]:
    """What a folder holds of a worklist (done, running, failed, missing), and what else lies there; a line each."""
    records, problems = results.read(folder)
    told = {"done": [], "running": [], "failed": [], "missing": []}
    for run in dict.fromkeys(run.id for run in runs):
        error = folder / f"{run}.error"
        if run in records:
            told["done"].append(run)
        elif held(folder / run):
            told["running"].append(run)
        elif error.exists():
            told["failed"].append(f"{run}: {_last_line(error)}")
        else:
            told["missing"].append(run)
    return told | {"of other worklists": [run for run in records if run not in told["done"]], "foreign": problems}
