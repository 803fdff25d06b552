"""Processes of tests: forks of one server, which has imported the project and never starts JAX.

So a process costs no import, and may itself fork. What it does is pickled, as for a new Python.
"""

import multiprocessing
import os
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import conftest  # noqa: F401  # the settings of the tests, in each child too: it compiles and rounds as they do

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["pytest", "experiments.run"])


def in_child(function: Callable, *arguments: Any) -> Any:
    """What a function returns in a process of its own; what it raises is raised here."""
    with ProcessPoolExecutor(1, mp_context=SERVER) as pool:
        return pool.submit(function, *arguments).result()


def forked(*works: Callable[[], Any]) -> list[int]:
    """Run each in a fork of this process, all begun at once: their exit statuses, or minus the signals that ended them.

    What one returns is its status, nothing being 0; what it raises makes the status 99.
    """
    gate, opener = os.pipe()
    children = [_fork(work, gate, opener) for work in works]
    os.close(gate)
    os.close(opener)
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


def _fork(work: Callable[[], Any], gate: int, opener: int) -> int:
    child = os.fork()
    if not child:
        status = 99
        try:
            os.close(opener)
            os.read(gate, 1)  # returns when the parent closes its end
            status = int(work() or 0)
        finally:
            os._exit(status)
    return child
