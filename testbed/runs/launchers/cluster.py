"""Clusters: a Ray cluster that is running, or the queue of a Slurm cluster. Neither package is needed otherwise."""

import contextlib
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from functools import cache, partial
from pathlib import Path
from types import ModuleType

from testbed.outside import extra_package
from testbed.runs.launchers.place import LOOK, Place, elsewhere, settings

RETRIES = 10  # of a run whose node was lost


def on_ray(
    workers: int | None = None, cores: int | None = None, logs: Path | None = None
) -> AbstractContextManager[Place]:
    """The Ray cluster that this machine belongs to, or that the variable RAY_ADDRESS names.

    Args:
      workers: runs at a time; by default as many as the cluster has cores for.
      cores: cores that Ray keeps for a run: 1 by default.

    Raises:
      ValueError: Ray is not installed, or no cluster is running.
    """
    ray = extra_package("ray", "cluster")
    _refuse_without_cluster(ray)
    return _on_ray(ray, workers, cores or 1)


@cache
def _refuse_without_cluster(ray: ModuleType) -> None:
    """Join a cluster and leave it, so that one that is not running is told before any work; once a process."""
    if _join(ray):
        ray.shutdown()


def _join(ray: ModuleType) -> bool:
    """Join the cluster; returns whether this process had not joined it before."""
    before = ray.is_initialized()
    try:
        ray.init(address="auto", ignore_reinit_error=True, log_to_driver=False, logging_level="ERROR")
    except ConnectionError as error:
        raise ValueError("no Ray cluster is running; start one with `ray start --head`, or set RAY_ADDRESS") from error
    return not before


@contextlib.contextmanager
def _on_ray(ray: ModuleType, workers: int | None, cores: int) -> Iterator[Place]:
    joined = _join(ray)
    remote = ray.remote(num_cpus=cores, max_retries=RETRIES)(elsewhere)

    def do(work, watch):
        promise = remote.remote(work, settings())
        try:
            while not ray.wait([promise], timeout=LOOK)[0]:
                watch("on the cluster", 0, 1)
        except BaseException:
            ray.cancel(promise, force=True)
            raise
        try:
            return ray.get(promise)
        except ray.exceptions.RayError as error:
            raise RuntimeError(f"on the cluster: {str(error).strip().splitlines()[-1]}") from error

    try:
        yield Place(workers or max(1, int(ray.cluster_resources().get("CPU", 1)) // cores), do)
    finally:
        if joined:
            ray.shutdown()


def on_slurm(
    workers: int | None = None, cores: int | None = None, logs: Path | None = None, **parameters
) -> AbstractContextManager[Place]:
    """The queue of a Slurm cluster, through submitit; on a machine without Slurm, processes of submitit's own.

    Args:
      workers: jobs in the queue at a time: 64 by default.
      cores: cores of a job: 1 by default.
      logs: folder for submitit's files.
      parameters: what else submitit is told: `timeout_min`, `mem_gb`, `slurm_partition`, ...

    Raises:
      ValueError: submitit is not installed; or, once it is opened, does not know a parameter.
    """
    more = {"cpus_per_task": cores or 1, "timeout_min": 24 * 60} | parameters
    return _on_slurm(extra_package("submitit", "slurm"), workers or 64, logs or Path("slurm"), more)


@contextlib.contextmanager
def _on_slurm(submitit: ModuleType, workers: int, logs: Path, parameters: dict) -> Iterator[Place]:
    executor = submitit.AutoExecutor(folder=logs.resolve())
    try:
        executor.update_parameters(**parameters)
    except (NameError, ValueError, TypeError) as error:
        raise ValueError(f"submitit: {' '.join(str(error).split())}") from error
    one_at_a_time = threading.Lock()

    def do(work, watch):
        with one_at_a_time:
            job = executor.submit(partial(elsewhere, work, settings()))
        try:
            while not job.done():
                watch(f"job {job.job_id}", 0, 1)
                time.sleep(LOOK)
        except BaseException:
            job.cancel()
            raise
        return job.result()

    yield Place(workers, do)
