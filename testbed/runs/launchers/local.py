"""This machine: threads that share it, or processes among which its cores are divided."""

import contextlib
import multiprocessing
import multiprocessing.connection
import os
import queue
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple

from testbed.runs.launchers.place import LOOK, Place, available_cores, elsewhere, settings
from testbed.runs.signals import start_shielded


def threads(
    workers: int | None = None, cores: int | None = None, logs: Path | None = None
) -> AbstractContextManager[Place]:
    """Threads of this process, one a core by default: they share all cores, and what has been compiled.

    Raises:
      ValueError: cores are given; a thread cannot be bound to some.
    """
    if cores:
        raise ValueError(f"--cores={cores} is for processes, ray and slurm; threads share all cores")
    place = Place(workers or len(available_cores()), lambda work, watch: work(watch))
    return contextlib.nullcontext(place)


class _Child(NamedTuple):
    process: Any
    pipe: Any


def _serve(pipe, cores: list[int]) -> None:
    """Do what comes through the pipe, on the given cores, for as long as the parent lives."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, cores)
    one_at_a_time = threading.Lock()

    def tell(ended, what):
        with one_at_a_time:
            pipe.send((ended, what))

    def die_with_the_parent():
        multiprocessing.connection.wait([multiprocessing.parent_process().sentinel])
        os._exit(1)

    threading.Thread(target=die_with_the_parent, daemon=True).start()
    while True:
        work, taken = pipe.recv()
        tell(True, elsewhere(work, taken, lambda *at: tell(False, at)))


def _start(cores: list[int]) -> _Child:
    context = multiprocessing.get_context("spawn")  # a fork would take over JAX's threads, but not what they do
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs, cores), daemon=True)
    start_shielded(process)  # this process takes Ctrl-C, and ends the child
    theirs.close()
    return _Child(process, ours)


def _end(child: _Child) -> int:
    """Kill a child; returns the status with which it ended."""
    child.process.kill()
    child.process.join()
    child.pipe.close()
    return child.process.exitcode


def _follow(child: _Child, watch) -> Any:
    """Wait for the end of a child's work, and hand on what it says meanwhile."""
    at = ("starting", 0, 1)
    while True:
        ended = False
        if child.pipe.poll(LOOK):
            ended, at = child.pipe.recv()
        if ended:
            return at
        watch(*at)


@contextlib.contextmanager
def processes(workers: int | None = None, cores: int | None = None, logs: Path | None = None) -> Iterator[Place]:
    """Local processes with the cores divided among them: one core each by default.

    A process that dies (killed, out of memory) fails its run only; the next run gets a new one.
    """
    every = available_cores()
    width = workers or max(1, len(every) // (cores or 1))
    share = cores or max(1, len(every) // width)
    slots = queue.SimpleQueue()
    for slot in range(width):
        slots.put(([every[(slot * share + i) % len(every)] for i in range(share)], None))

    def do(work, watch):
        mine, child = slots.get()
        try:
            child = child or _start(mine)
            child.pipe.send((work, settings()))
            result = _follow(child, watch)
        except BaseException as error:
            slots.put((mine, None))
            status = child and _end(child)
            if isinstance(error, EOFError | ConnectionError):
                raise RuntimeError(f"its process died with status {status}: killed, or out of memory?") from error
            raise
        slots.put((mine, child))
        return result

    try:
        yield Place(width, do)
    finally:
        while not slots.empty():
            _, child = slots.get()
            if child:
                _end(child)
