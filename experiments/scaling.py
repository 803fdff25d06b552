"""What things cost against width, depth, vocabulary, length and devices, as shares of what the machine can do.

  python -m experiments.scaling                    a table, and results/scaling.png
  python -m experiments.scaling --devices=1,2,4,8  throughput on so many devices (simulated ones where there is a CPU)

Three works: gradient steps of 256 prompts, candidates of the `uniform` attack, prompts counted exactly. A work's share
of the machine is the arithmetic of its forward passes (a gradient counts three; a counted prompt one whole pass, though
shared prefixes save most of it) over the rate of a large matrix product, measured beside it. Compilation is left out.
"""

import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import pandas as pd
from absl import app, flags
from rich.console import Console
from rich.progress import track
from rich.table import Table

from tasks import TASKS
from testbed import devices, plots
from testbed.attacks import ATTACKS, search
from testbed.evaluation import exact
from testbed.model import PRECISION, Transformer, model_config
from testbed.objective import Objective
from testbed.policy import greedy
from testbed.task import Task, space_size
from testbed.training.rounds import advance, progress
from testbed.training.schedule import Schedule, units
from testbed.training.units import begin

OUT = flags.DEFINE_string("out", "results", "Folder of the figure.")
ON = flags.DEFINE_list("devices", None, "Measure throughput on these numbers of devices instead.")
ALONE = flags.DEFINE_bool("alone", False, "Print the throughput on the devices that there are, as JSON, and stop.")
REPEATS = 2
BASE = {"width": 32, "layers": 2, "vocab": 8, "length": 5}
AXES = {"width": (16, 32, 64, 128), "layers": (1, 2, 4, 8), "vocab": (8, 16, 24), "length": (4, 5, 6, 7)}
SCHEDULE = Schedule(steps=32, units=2)
ATTACKERS, PASSES, SEEDS = 256, 64, 8


class Work(NamedTuple):
    """A call, the units of work that it does, their name, and the forward passes that one is worth."""

    run: Callable[[], object]
    amount: int
    unit: str
    forwards: int


def seconds(run: Callable[[], object]) -> float:
    """The shortest of `REPEATS` calls, after one that compiles."""
    took = []
    for _ in range(REPEATS + 1):
        start = time.perf_counter()
        jax.block_until_ready(jax.tree.leaves(run()))
        took.append(time.perf_counter() - start)
    return min(took[1:])


def peak() -> float:
    """Arithmetic a second of a large float32 matrix product."""
    n = 2048
    a = jax.random.normal(jax.random.key(0), (n, n))
    product = jax.jit(lambda a: jnp.matmul(a, a, precision=PRECISION))
    return 2 * n**3 / seconds(lambda: product(a))


def forward_cost(model: Transformer, task: Task) -> float:
    """Arithmetic of one forward pass, as XLA counts it."""
    soft = jnp.zeros((task.prompt_length, task.vocab))
    return jax.jit(model.__call__).lower(soft, jnp.zeros(1, jnp.int32)).compile().cost_analysis()["flops"]


def works(task: Task, model: Transformer) -> dict[str, Work]:
    """The three works on a task's model."""
    objective, attack = Objective(task, model, greedy(task)), ATTACKS["uniform"]()
    state, order = begin(model, task, SCHEDULE), units(SCHEDULE)
    starts = search.fresh_starts(jax.random.key(1), attack, objective, ATTACKERS)
    return {
        "training": Work(
            lambda: list(progress(jax.random.key(2), state, order, task, schedule=SCHEDULE)),
            SCHEDULE.steps, "steps", 3 * SCHEDULE.batch,
        ),
        "attack": Work(
            lambda: search.search(jax.random.key(3), attack, objective, starts, budget=PASSES),
            ATTACKERS * PASSES, "candidates", 1,
        ),
        "exact count": Work(
            lambda: exact.count(model, task, {"greedy": greedy(task)})["greedy"].failures,
            space_size(task), "prompts", 1,
        ),
    }  # fmt: skip


def measure(axis: str, value: int, matmul: float) -> list[dict]:
    """A row a work, at the base sizes with one of them changed."""
    sizes = BASE | {axis: value}
    task = TASKS["injury"](length=sizes["length"], vocab=sizes["vocab"])
    model = Transformer(model_config(task, width=sizes["width"], layers=sizes["layers"]), jax.random.key(0))
    arithmetic, rows = forward_cost(model, task), []
    for name, work in works(task, model).items():
        rate = work.amount / seconds(work.run)
        share = rate * work.forwards * arithmetic / matmul
        rows.append({"axis": axis, "value": value, "work": name, "rate": rate, "unit": work.unit, "share": share})
    return rows


def memory() -> float:
    """The most memory that this process has held, in MiB."""
    held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return held / (2**20 if sys.platform == "darwin" else 2**10)


def throughput() -> dict[str, float]:
    """Units of each work a second on all devices that there are; training is a population of seeds."""
    task = TASKS["injury"](length=6)
    config = model_config(task)

    def trained(key):
        state = begin(Transformer(config, key), task, SCHEDULE)
        return advance(key, state, units(SCHEDULE), task, schedule=SCHEDULE, attack=None)

    keys = jax.random.split(jax.random.key(0), SEEDS)
    rates = {"population": SEEDS * SCHEDULE.steps / seconds(lambda: devices.population(trained, keys))}
    rest = works(task, Transformer(config, jax.random.key(0)))
    return rates | {name: rest[name].amount / seconds(rest[name].run) for name in ("attack", "exact count")}


def on_devices(numbers: list[str]) -> pd.DataFrame:
    """Throughput on each number of devices, in processes of their own, over that on the first."""
    if jax.default_backend() != "cpu":
        raise SystemExit("--devices simulates devices, which a CPU alone can do; leave it out")
    rows = {}
    for number in numbers:
        flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={number}"
        done = subprocess.run(
            [sys.executable, "-m", "experiments.scaling", "--alone"],
            env=os.environ | {"XLA_FLAGS": flags, "NPROC": max(numbers, key=int)}, capture_output=True, text=True,
        )  # fmt: skip
        if done.returncode:
            raise RuntimeError(done.stderr)
        rows[int(number)] = json.loads(done.stdout)
    table = pd.DataFrame.from_dict(rows, orient="index")
    return table / table.iloc[0]


def main(_) -> None:
    """Print the tables and draw the figure."""
    console = Console(width=None if sys.stdout.isatty() else 120)
    if ALONE.value:
        print(json.dumps(throughput()))
        return
    if ON.value:
        table = on_devices(ON.value)
        console.print(f"throughput on n devices over that on {table.index[0]} ({os.cpu_count()} cores):")
        console.print(table.round(2).to_string())
        return
    matmul = peak()
    places = [(axis, value) for axis, values in AXES.items() for value in values]
    shown = track(places, "measuring", console=Console(stderr=True), disable=not sys.stderr.isatty())
    frame = pd.DataFrame(row for place in shown for row in measure(*place, matmul))
    table = Table("axis", "value", "work", "per second", "unit", "share of matmul peak", title_justify="left")
    table.title = f"matmul peak {matmul / 1e9:,.0f} GFLOP/s; peak memory of the process {memory():,.0f} MiB"
    for row in frame.itertuples():
        table.add_row(row.axis, str(row.value), row.work, f"{row.rate:,.0f}", row.unit, f"{row.share:.1%}")
    console.print(table)
    figure, axes = plots.panels(
        [f"against {axis}" for axis in AXES],
        f"seconds a unit over those at the base ({', '.join(f'{k} {v}' for k, v in BASE.items())}); in brackets the "
        "slope of log cost against log size",
    )
    for ax, (axis, rows) in zip(axes, frame.groupby("axis", sort=False), strict=True):
        plots.costs(ax, rows.assign(cost=1 / rows["rate"]), BASE[axis])
        ax.set_xlabel(axis)
    axes[0].set_ylabel("cost, relative")
    plots.save(figure, Path(OUT.value) / "scaling.png")
    console.print(f"figure: {(Path(OUT.value) / 'scaling.png').resolve()}")


if __name__ == "__main__":
    app.run(main)
