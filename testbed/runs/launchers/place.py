"""What the launchers share: a place where work is done, and the settings that travel with it."""

import os
from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from testbed.runs.programs import mend_cache
from testbed.watch import Watch, silent

Work = Callable[[Watch], Any]  # pickled, where it travels

LOOK = 0.2  # seconds between two looks at work that is done elsewhere


class Place(NamedTuple):
    """`width` slots, and `do(work, watch) -> result`, which fills one, and may be called from as many threads.

    The work calls `watch`, or where it is done elsewhere, `do` does every `LOOK` seconds: raising there stops it.
    """

    width: int
    do: Callable[[Work, Watch], Any]


def available_cores() -> list[int]:
    """The cores that this process may use."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))


def settings() -> dict[str, Any]:
    """The settings of JAX that work takes along: what has been compiled is kept in one place for all."""
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    return {name: getattr(jax.config, name) for name in names}


def elsewhere(work: Work, taken: dict[str, Any], watch: Watch = silent) -> Any:
    """Do work in another process than the one that asked for it, under the `settings` of that one."""
    for name, value in taken.items():
        jax.config.update(name, value)
    mend_cache()
    return work(watch)
