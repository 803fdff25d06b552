"""Launchers: where the runs of a sweep are done. `LAUNCHERS` is the table: name -> factory.

A factory is a context manager `(workers, cores, logs, **options)` that opens a `Place`; None stands for a good default.
Wherever a run is done, its record is the same on the same kind of processor.
"""

import jax

from testbed.runs.launchers.cluster import on_ray, on_slurm
from testbed.runs.launchers.local import processes, threads
from testbed.runs.launchers.place import available_cores

LAUNCHERS = {"threads": threads, "processes": processes, "ray": on_ray, "slurm": on_slurm}


def best_here() -> str:
    """The quickest launcher on this machine: one process keeps no more than two cores or one accelerator busy."""
    return "processes" if len(available_cores()) > 2 and jax.default_backend() == "cpu" else "threads"
