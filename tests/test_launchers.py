"""The same worklist in threads, processes, a Ray cluster that loses a node, and a Slurm queue: the same records."""

import dataclasses
import hashlib
import io
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from children import SERVER
from rich.console import Console

from testbed.runs import results
from testbed.runs.launchers import LAUNCHERS, local, processes, threads
from testbed.runs.launchers.local import available_cores
from testbed.runs.locks import held
from testbed.runs.sweep import Outcome, Run, status, sweep

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def quickly_started(request, monkeypatch):
    """Workers are forks of the server of tests; those of slow tests are new processes, as users have them."""
    if request.node.get_closest_marker("slow") is None:
        monkeypatch.setattr(local.multiprocessing, "get_context", lambda _: SERVER)


@dataclasses.dataclass(frozen=True)
class Config:
    size: int
    trouble: str = ""
    seconds: float = 0.0


def worklist(sizes: int = 3, **config) -> list[Run]:
    return [Run("fake", Config(size, **config), seed) for size in range(sizes) for seed in range(2)]


def perform(run, folder, watch) -> dict:
    """A pure function of config and seed, which meets the trouble that its config asks for, once a folder."""
    config, seed = run.config, run.seed
    begun = folder / "begun" / f"{config.size}-{seed}-{os.getpid()}-{time.monotonic_ns()}"
    begun.parent.mkdir(exist_ok=True)
    begun.touch()
    met = folder / f"met-{config.size}-{seed}"
    if config.trouble and not met.exists():
        met.touch()
        if config.trouble == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if config.trouble == "raise":
            raise ValueError("it was to happen")
        met.write_text(str(os.getpid()))
        os.kill(os.getpid(), signal.SIGSTOP)
    end = time.monotonic() + config.seconds
    while time.monotonic() < end:
        watch("waiting", 0, 1)
        time.sleep(0.02)
    return {"measurements": {"bytes": list(hashlib.sha256(f"{config.size} {seed}".encode()).digest())}}


def stuck_on_the_lost_node(run, folder, watch) -> dict:
    """`perform`, except on the node that will be lost: there no run ever ends."""
    import ray

    if ray.get_runtime_context().get_node_id() == (folder / "lost").read_text():
        (folder / "stuck").touch()
        time.sleep(600)
    return perform(run, folder, watch)


def cores_of(run, folder, watch) -> dict:
    time.sleep(0.3)  # so that both processes get one
    return {"measurements": {"cores": sorted(os.sched_getaffinity(0)), "process": os.getpid()}}


def quiet() -> Console:
    return Console(file=io.StringIO())


def facts(folder: Path) -> dict[str, dict]:
    records, problems = results.read(folder)
    assert problems == []
    return {
        run: {k: v for k, v in r.items() if k not in ("seconds", "provenance", "digest")} for run, r in records.items()
    }


def go_on_when_stopped(folder: Path, run: Run) -> None:
    """Wait until the worker that is at a run has stopped, and let it go on."""
    met = folder / f"met-{run.config.size}-{run.seed}"
    while not (met.exists() and met.read_text() and " T " in Path(f"/proc/{met.read_text()}/stat").read_text()):
        time.sleep(0.02)
    assert held(folder / run.id), "what is stopped is not given up"
    os.kill(int(met.read_text()), signal.SIGCONT)


def undisturbed(folder: Path, runs: list[Run]) -> dict[str, dict]:
    """The records of the same runs, done one after the other in this thread's process without any trouble."""
    assert sweep(runs, perform, folder, quiet(), place=threads(1)).failed == []
    return facts(folder)


def wait_while(holds: Callable[[], Any], seconds: float) -> None:
    """Wait as long as something holds, at most so many seconds."""
    deadline = time.monotonic() + seconds
    while holds() and time.monotonic() < deadline:
        time.sleep(0.05)


def begun(folder: Path) -> list[str]:
    """Which runs were begun, once for each time."""
    return sorted("-".join(path.name.split("-")[:2]) for path in (folder / "begun").iterdir())


def test_processes_leave_the_records_that_threads_leave_a_dead_one_fails_its_run_a_stopped_one_waits(tmp_path):
    runs = [*worklist(2), Run("fake", Config(7, "die"), 0), Run("fake", Config(8, "raise"), 0)]
    runs.append(Run("fake", Config(9, "stop"), 0))
    with ThreadPoolExecutor(1) as pool:
        waker = pool.submit(go_on_when_stopped, tmp_path / "a", runs[6])
        outcome = sweep(runs, perform, tmp_path / "a", quiet(), place=processes(1))
        waker.result()
    assert (outcome.done, outcome.skipped) == (5, 0)
    dead, raised = outcome.failed if runs[4].id in outcome.failed[0] else outcome.failed[::-1]
    assert dead.startswith(runs[4].id) and "died with status -9" in dead
    assert raised.endswith("ValueError: it was to happen")
    assert "Traceback" in (tmp_path / "a" / f"{runs[5].id}.error").read_text()
    assert not list((tmp_path / "a").glob("*.lock")) or not any(held(tmp_path / "a" / run.id) for run in runs)
    assert sweep(runs, perform, tmp_path / "a", quiet(), place=threads(2)) == Outcome(2, 5, [])
    assert not [*(tmp_path / "a").glob("*.error"), *(tmp_path / "a").glob("*.lock")], "the next start clears up"
    (tmp_path / "b").mkdir()
    for size in (7, 8, 9):
        (tmp_path / "b" / f"met-{size}-0").touch()
    assert facts(tmp_path / "a") == undisturbed(tmp_path / "b", runs)


@pytest.mark.skipif(len(available_cores()) < 2, reason="one core cannot be divided")
def test_processes_divide_the_cores(tmp_path):
    sweep(worklist(2), cores_of, tmp_path, quiet(), place=processes(2, 1))
    measured = [record["measurements"] for record in results.read(tmp_path)[0].values()]
    assert {len(m["cores"]) for m in measured} == {1}
    shares = {m["process"]: tuple(m["cores"]) for m in measured}
    assert len(shares) == len(set(shares.values())) == 2


def test_a_thread_cannot_be_bound_to_cores(tmp_path):
    with pytest.raises(ValueError, match="threads share all cores"):
        sweep(worklist(), perform, tmp_path, quiet(), place=threads(2, 1))


def sweep_as_child(folder: Path, place: str, workers: int, seconds: float) -> None:
    """The sweep of another process."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sweep(worklist(4, seconds=seconds), perform, folder, quiet(), place=LAUNCHERS[place](workers))


def in_another_process(folder: Path, place: str, workers: int, seconds: float) -> Any:
    """A sweep of `worklist(4)` in another process; returns when its first run has begun."""
    child = SERVER.Process(target=sweep_as_child, args=(folder, place, workers, seconds))
    child.start()
    wait_while(lambda: not (folder / "begun").exists() and child.is_alive(), 600)
    assert (folder / "begun").exists()
    return child


SLOW = [pytest.param(how, marks=pytest.mark.slow) for how in (signal.SIGKILL, signal.SIGTERM)]


@pytest.mark.parametrize("how", [signal.SIGINT, *SLOW])
def test_a_sweep_that_is_ended_leaves_no_process_and_no_lock_and_is_completed_by_another(tmp_path, how):
    folder, runs = tmp_path / "a", worklist(4, seconds=0.3)
    child = in_another_process(folder, "processes", 2, 0.3)
    assert len(status(runs, folder)["running"]) >= 1
    os.kill(child.pid, how)
    child.join(timeout=300)
    assert child.exitcode
    wait_while(lambda: status(runs, folder)["running"], 300)
    there = len(begun(folder))
    assert status(runs, folder)["running"] == [], "its workers died with it"
    assert sweep(runs, perform, folder, quiet(), place=threads(4)).failed == []
    assert len(begun(folder)) <= there + len(runs)
    assert facts(folder) == undisturbed(tmp_path / "b", runs)


def test_two_sweeps_share_the_work_and_repeat_none_of_it(tmp_path):
    folder, runs = tmp_path / "a", worklist(4, seconds=0.3)
    child = in_another_process(folder, "threads", 2, 0.3)
    outcome = sweep(runs, perform, folder, quiet(), place=threads(2))
    child.join()
    assert child.exitcode == 0
    assert outcome.done + outcome.skipped == len(runs)
    assert begun(folder) == sorted(f"{run.config.size}-{run.seed}" for run in runs), "each was begun once"
    assert facts(folder) == undisturbed(tmp_path / "b", runs)


def test_a_run_whose_owner_dies_is_taken_over_by_the_sweep_that_waits(tmp_path):
    folder, runs = tmp_path / "a", worklist(4, seconds=0.2)
    child = in_another_process(folder, "threads", 1, 0.2)
    threading.Timer(0.3, child.kill).start()
    assert sweep(runs, perform, folder, quiet(), place=threads(2)).failed == []
    child.join()
    assert facts(folder) == undisturbed(tmp_path / "b", runs)


def test_what_is_not_installed_or_not_running_is_one_line(tmp_path, monkeypatch):
    for name, package in (("ray", "ray"), ("slurm", "submitit")):
        monkeypatch.setitem(sys.modules, package, None)
        with pytest.raises(ValueError, match=f"{package} is not installed; python -m pip install"):
            sweep(worklist(), perform, tmp_path, quiet(), place=LAUNCHERS[name]())


def test_a_ray_cluster_that_is_not_running_is_told_before_any_work(monkeypatch):
    def nowhere(**_):
        raise ConnectionError("could not find any running Ray instance")

    ray = ModuleType("ray")
    ray.is_initialized, ray.init = lambda: False, nowhere
    monkeypatch.setitem(sys.modules, "ray", ray)
    with pytest.raises(ValueError, match=r"^no Ray cluster is running; start one with `ray start --head`, or set"):
        LAUNCHERS["ray"]()


ROUNDING = """
import os; os.sched_setaffinity(0, set({cores}))
import jax, numpy as np
from tasks import TASKS
from testbed import model
from testbed.training import rounds, schedule
task = TASKS["injury"]()
net = model.Transformer(model.model_config(task), jax.random.key(0))
net, history = rounds.train(jax.random.key(1), net, task, schedule.Schedule(steps=16))
print(*(np.asarray(leaf).tobytes().hex() for leaf in jax.tree.leaves((net, history))))
"""


@pytest.mark.slow
@pytest.mark.skipif(len(available_cores()) < 2, reason="there is only one core")
def test_a_process_bound_to_one_core_rounds_as_one_with_more():
    children = [
        subprocess.Popen(
            [sys.executable, "-c", ROUNDING.format(cores=cores)], cwd=ROOT, stdout=subprocess.PIPE, text=True,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
        )
        for cores in (available_cores()[:1], available_cores())
    ]  # fmt: skip
    one, more = (child.communicate()[0] for child in children)
    assert one == more and len(one) > 1000


@pytest.mark.slow
def test_the_queue_of_submitit_leaves_the_same_records(tmp_path, monkeypatch):
    pytest.importorskip("submitit", reason="python -m pip install -e '.[slurm]'")
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}:{ROOT / 'tests'}")
    runs = [*worklist(1), Run("fake", Config(8, "raise"), 0)]
    place = LAUNCHERS["slurm"](logs=tmp_path / "logs", timeout_min=5)
    outcome = sweep(runs, perform, tmp_path / "a", quiet(), place=place)
    assert (outcome.done, len(outcome.failed)) == (2, 1)
    assert outcome.failed[0].endswith("ValueError: it was to happen")
    assert sweep(runs, perform, tmp_path / "a", quiet(), place=threads(1)) == Outcome(1, 2, [])
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "met-8-0").touch()
    assert facts(tmp_path / "a") == undisturbed(tmp_path / "b", runs)
    with pytest.raises(ValueError, match=r"submitit: .*no_such"):
        sweep(
            worklist(4), perform, tmp_path / "a", quiet(), place=LAUNCHERS["slurm"](logs=tmp_path / "logs", no_such=5)
        )


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_a_ray_cluster_that_loses_a_node_finishes_with_the_same_records(tmp_path, monkeypatch):
    ray = pytest.importorskip("ray", reason="python -m pip install -e '.[cluster]'")
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("PYTHONPATH", f"{ROOT}:{ROOT / 'tests'}")
    folder, runs, over = tmp_path / "a", worklist(6, seconds=0.2), threading.Event()
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    lost = cluster.add_node(num_cpus=2)
    cluster.add_node(num_cpus=1)
    cluster.wait_for_nodes()
    folder.mkdir()
    (folder / "lost").write_text(lost.node_id)
    ray.init(address=cluster.address, log_to_driver=False)
    try:

        def lose_a_node():
            while not (folder / "stuck").exists() and not over.wait(0.1):
                pass
            cluster.remove_node(lost, allow_graceful=False)

        thief = threading.Thread(target=lose_a_node)
        thief.start()
        outcome = sweep(runs, stuck_on_the_lost_node, folder, quiet(), place=LAUNCHERS["ray"](workers=3))
        over.set()
        thief.join()
        alive = lambda: [node["Alive"] for node in ray.nodes()]
        wait_while(lambda: all(alive()), 60)  # the head learns of the loss in its own time
        assert alive().count(False) == 1
    finally:
        ray.shutdown()
        cluster.shutdown()
    assert outcome == Outcome(len(runs), 0, [])
    assert (folder / "stuck").exists(), "some run was lost with the node, and begun again"
    assert facts(folder) == undisturbed(tmp_path / "b", runs)
