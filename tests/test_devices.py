"""One device or eight: the same numbers."""

import os
from collections.abc import Callable

import numpy as np
import pytest
from children import in_child


def on_devices(devices: int, what: Callable[[], dict]) -> dict:
    """What a process computes that simulates so many devices: one that has not started JAX yet.

    XLA has at least a thread a device, and cuts sums into as many parts: it gets eight, however many devices.
    """
    os.environ["XLA_FLAGS"] += f" --xla_force_host_platform_device_count={devices}"
    os.environ |= {"NPROC": "8", "JAX_PLATFORMS": "cpu"}
    return what()


def children(what: Callable[[], dict]) -> list[dict]:
    """What processes with one and with eight simulated devices compute."""
    return [in_child(on_devices, devices, what) for devices in (1, 8)]


def test_members_are_divided_over_all_devices_and_give_what_they_give_on_one():
    one, eight = children(members)
    assert one["devices"] == one["members on"] == one["array on"] == 1
    assert eight == one | {"devices": 8, "members on": 8, "array on": 8}


@pytest.mark.slow
def test_training_counting_and_attacking_on_eight_devices_give_what_they_give_on_one():
    one, eight = children(works)
    assert eight["count"] == one["count"]
    assert eight["attack"] == one["attack"], "prompts, first successes and calls"
    # What is batched otherwise is rounded otherwise.
    np.testing.assert_allclose(eight["margins"], one["margins"], rtol=0, atol=1e-5)
    np.testing.assert_allclose(eight["losses"], one["losses"], rtol=0, atol=1e-6)


@pytest.mark.slow
def test_a_population_on_eight_devices_ends_as_on_one():
    one, eight = children(population)
    assert eight["pools"] == one["pools"]
    np.testing.assert_allclose(eight["weights"], one["weights"], rtol=0, atol=1e-5)


def members() -> dict:
    """A small net at several radii, five of eleven at a time or one by one; arrays as text, equal if every bit is."""
    import jax
    import jax.numpy as jnp

    from testbed import devices

    weights = jax.random.normal(jax.random.key(0), (8, 8))

    def moved(key, radius):
        noise = jax.random.normal(key, (4, 8))
        return {"logits": jnp.tanh(radius * noise @ weights).sum(axis=0), "none": jnp.zeros((0, 3))}

    arguments = jax.random.split(jax.random.key(3), 11), jnp.linspace(0, 1, 11)
    results = {together: devices.population(moved, *arguments, together=together) for together in (1, 5)}
    alone = jax.jit(moved)
    for number, argument in enumerate(zip(*arguments, strict=True)):
        np.testing.assert_allclose(results[1]["logits"][number], alone(*argument)["logits"], atol=1e-6)
    assert results[5]["none"].shape == (11, 0, 3)
    over = devices.over_devices
    assert len(over(jnp.arange(9)).sharding.device_set) == 1, "no device gets more than another"
    assert len(jax.jit(over)(jnp.arange(16)).sharding.device_set) == 1, "a traced program is left alone"
    return {
        "devices": jax.device_count(),
        "members on": len(results[1]["logits"].sharding.device_set),
        "array on": len(over(jnp.arange(16)).sharding.device_set),
        "logits": {together: np.asarray(result["logits"]).tobytes().hex() for together, result in results.items()},
    }


def works() -> dict:
    """A population of trainings, an exact count, and an attack."""
    import jax

    from tasks import TASKS
    from testbed import devices
    from testbed.attacks import ATTACKS, attack_model
    from testbed.evaluation import exact
    from testbed.model import Transformer, model_config
    from testbed.objective import Objective
    from testbed.policy import greedy
    from testbed.training.rounds import advance
    from testbed.training.schedule import Schedule, units
    from testbed.training.units import begin

    task = TASKS["injury"](length=5)
    schedule = Schedule(steps=8, batch=16, units=2)
    config, order = model_config(task, width=8, heads=2, layers=1), units(schedule)

    def trained(key):
        state = begin(Transformer(config, key), task, schedule)
        return advance(key, state, order, task, schedule=schedule, attack=None)[1][0]

    model = Transformer(config, jax.random.key(0))
    counted = exact.count(model, task, {"greedy": greedy(task)})["greedy"]
    objective = Objective(task, model, greedy(task))
    trace = jax.device_get(attack_model(jax.random.key(4), ATTACKS["coordinate"](), objective, attackers=16, budget=60))
    return {
        "losses": np.asarray(devices.population(trained, jax.random.split(jax.random.key(1), 10))).tolist(),
        "count": exact.summary(counted) | {"ids": counted.ids.tolist()},
        "attack": [np.asarray(leaf).tolist() for leaf in (trace.prompt, trace.first, trace.spent, trace.cost)],
        "margins": [trace.margin.tolist(), *trace.curve.tolist()],
    }


def population() -> dict:
    """Three members trained against an attack."""
    import jax
    from test_training import TASK, TINY, linear

    from testbed.attacks import ATTACKS
    from testbed.training.population import train_population, train_units

    keys, models = jax.random.split(jax.random.key(0), 3), [linear(seed) for seed in range(3)]
    trained = train_population(keys, models, TASK, TINY, attack=ATTACKS["coordinate"]())
    assert train_units._cache_size() == 1, "compiled once"
    return {
        "weights": [np.asarray(model.weight).tolist() for model, _ in trained],
        "pools": [history.pool.tolist() for _, history in trained],
    }
