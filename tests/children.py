"""Processes of tests: forks of one server, which has imported the project and never starts JAX.

So a process costs no import, and may itself fork. What it does is pickled, as for a new Python.
"""

import multiprocessing
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
