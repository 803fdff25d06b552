"""Launchers: where the runs of a sweep are done. `LAUNCHERS` is the table: name -> factory.

A factory is a context manager `(workers, cores, logs, **options)` that opens a `Place`; None stands for a good default.
Wherever a run is done, its record is the same on the same kind of hardware.
"""

from testbed.launchers.cluster import on_ray, on_slurm
from testbed.launchers.local import processes, threads

LAUNCHERS = {"threads": threads, "processes": processes, "ray": on_ray, "slurm": on_slurm}
