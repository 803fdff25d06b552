"""A sweep: a worklist of runs, each done once, written once, and skipped when it is there already."""

import contextlib
import os
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from testbed import results


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


class _Rate(ProgressColumn):
    def render(self, task):
        return Text("" if not task.speed else f"{task.speed:,.2g}/s" if task.speed < 10 else f"{task.speed:,.0f}/s")


def _board(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description:<36}"),
        BarColumn(20),
        MofNCompleteColumn(),
        _Rate(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
    )


class _Stopped(BaseException):
    """Raised inside a worker when the user stops the sweep; no run may catch it."""


def _already_there(folder: Path, run: Run) -> None:
    """Accept a record that another sweep wrote meanwhile.

    Raises:
      FileExistsError: what is there is no record; it is somebody's file, and not overwritten.
    """
    if run.id not in results.read(folder)[0]:
        raise FileExistsError(f"{folder / run.id}.json is in the way and is no record; move or delete it")


def sweep(
    runs: Sequence[Run], measure: Callable[..., dict], folder: Path, console: Console, workers: int | None = None
) -> Outcome:
    """Do the runs that `folder` has no record of, and write a record for each as soon as it is done.

    A run that fails leaves `<id>.error` beside the records and is tried again by the next sweep; the others go on.
    Stopped or killed anywhere, the same sweep started again ends with the same records.

    Args:
      measure: `(config, seed, folder, watch) -> plain numbers`; `watch(phase, done, total)` feeds the board.
      workers: runs at a time, one thread each; a core each by default. A small model keeps only one core busy, and
        threads share what has been compiled: two of them do twice the work of one on two cores.
    """
    there, _ = results.read(folder)
    runs = {run.id: run for run in runs}.values()
    missing = [run for run in runs if run.id not in there]
    source, stop = results.provenance(), threading.Event()
    with _board(console) as board, ThreadPoolExecutor(workers or os.cpu_count()) as pool:
        overall = board.add_task("runs", total=len(runs), completed=len(runs) - len(missing))

        def one(run: Run) -> str | None:
            line = board.add_task("starting", total=None)

            def watch(phase, done, total):
                if stop.is_set():
                    raise _Stopped
                if board.tasks[board.task_ids.index(line)].description != phase:
                    board.reset(line, description=phase, total=total)
                board.update(line, completed=done, total=total)

            started = time.perf_counter()
            try:
                if (folder / f"{run.id}.json").exists():
                    return _already_there(folder, run)
                measurements = measure(run.config, run.seed, folder, watch)
                seconds = round(time.perf_counter() - started, 2)
                record = {"experiment": run.experiment, "config": asdict(run.config), "seed": run.seed}
                record |= {"measurements": measurements, "seconds": seconds, "provenance": source | results.now()}
                results.write(folder, run.id, record)
            except Exception as error:
                with contextlib.suppress(OSError):  # the disk may be full, and that the very reason
                    results.write_atomically(folder / f"{run.id}.error", traceback.format_exc().encode())
                reason = traceback.format_exception_only(error)[-1].strip().splitlines()[0]
                return f"{run.id}: {reason}"
            finally:
                board.remove_task(line)
                board.advance(overall)
            (folder / f"{run.id}.error").unlink(missing_ok=True)
            return None

        try:
            failed = [line for line in pool.map(one, missing) if line]
        except BaseException:
            stop.set()
            pool.shutdown(cancel_futures=True)
            raise
    return Outcome(len(missing) - len(failed), len(runs) - len(missing), failed)
