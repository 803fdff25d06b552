"""One device or eight: the same numbers.

Run as a program with a number of devices, this file is the child of its own tests.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[1]


def child(devices: int) -> dict:
    """What a process with so many simulated devices computes.

    XLA has at least a thread a device, and cuts sums into as many parts: both processes get eight.
    """
    flags = f"--xla_force_host_platform_device_count={devices}"
    done = subprocess.run(
        [sys.executable, __file__, str(devices)], capture_output=True, text=True, timeout=300,
        env=os.environ | {
            "XLA_FLAGS": flags, "NPROC": "8", "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT),
            "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        },
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def computed():
    return {devices: child(devices) for devices in (1, 8)}


def test_the_work_is_divided(computed):
    assert computed[1]["devices"] == 1
    assert computed[8] == computed[8] | {
        "devices": 8,
        "population on": 8,
        "attackers on": 8,
        "of nine, on": 1,
        "traced": 1,
    }


@pytest.mark.parametrize("what", ["population", "radii", "count", "attack"])
def test_eight_devices_give_what_one_gives(computed, what):
    assert computed[8][what] == computed[1][what]


def test_margins_of_attacks_differ_by_no_more_than_the_rounding_of_another_batch(computed):
    np.testing.assert_allclose(computed[8]["margins"], computed[1]["margins"], rtol=0, atol=1e-5)


def compute() -> dict:
    """Numbers of everything that is divided, as text that is equal only where every bit is."""
    import jax
    import jax.numpy as jnp

    from tasks import TASKS
    from testbed import devices, training
    from testbed.attacks import ATTACKS, search
    from testbed.evaluation import exact
    from testbed.model import Transformer, model_config
    from testbed.objective import Objective
    from testbed.policy import greedy

    def bits(tree):
        return [np.asarray(leaf).tobytes().hex() for leaf in jax.tree.leaves(tree)]

    task, attack = TASKS["injury"](length=5), ATTACKS["uniform"]()
    schedule = training.Schedule(steps=4, batch=8, units=1)
    config = model_config(task, width=8, heads=2, layers=1)
    part = training.units(schedule)

    def trained(key):
        init_key, train_key = jax.random.split(key)
        state = training.begin(Transformer(config, init_key), task, schedule)
        return training.advance(train_key, state, part, task, schedule, None)

    def moved(key, radius):
        noise = jax.random.normal(key, (task.prompt_length, task.vocab))
        return model(jax.nn.one_hot(starts[0], task.vocab) + radius * noise, jnp.zeros(1, jnp.int32))

    starts = jax.vmap(task.sample_hazard)(jax.random.split(jax.random.key(2), 16))
    model = Transformer(config, jax.random.key(0))
    states, losses = devices.population(trained, jax.random.split(jax.random.key(1), 10))
    radii = devices.population(moved, jax.random.split(jax.random.key(3), 11), jnp.linspace(0, 1, 11))
    counted = exact.count(model, task, {"greedy": greedy(task)})["greedy"]
    over = devices.over_devices
    objective, key = Objective(task, model, greedy(task)), jax.random.key(4)
    trace = jax.device_get(search.search(attack, objective, over(starts), key, 60))
    return {
        "devices": jax.device_count(),
        "population on": len(states.step.sharding.device_set),
        "attackers on": len(over(jnp.arange(16)).sharding.device_set),
        "of nine, on": len(over(jnp.arange(9)).sharding.device_set),
        "population": bits((states, losses)),
        "radii": bits(radii),
        "count": exact.summary(counted) | {"ids": counted.ids.tolist()},
        "attack": bits(trace._replace(margin=0, curve=0)),
        "margins": np.concatenate([trace.margin, trace.curve.ravel()]).tolist(),
        "traced": len(jax.jit(over)(jnp.arange(16)).sharding.device_set),
    }


if __name__ == "__main__":
    print(json.dumps(compute()))
