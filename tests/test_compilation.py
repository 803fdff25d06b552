"""The promise that a second call compiles nothing, with another key, other weights, rounds or another threshold."""

import dataclasses

import jax
import numpy as np
import pytest
from conftest import compilations, mostly_slow
from reference import H, K, P, Q

from tasks import TASKS
from tasks.injury import injury
from testbed import compilation
from testbed.attacks import ATTACKS
from testbed.attacks.search import search
from testbed.evaluation import exact
from testbed.evaluation.samples import clean_behaviour
from testbed.objective import Objective, confirm
from testbed.policy import conservative, matched_policy
from testbed.training.rounds import train
from testbed.training.schedule import Schedule

LEVEL, TASK = compilation.LEVEL, injury(length=3)
TINY = Schedule(steps=8, rounds=2, finds=8, budget=9, batch=8, learning_rate=1e-2, units=4)


def test_compilations_are_heard():
    function = jax.jit(lambda x: x + 1)
    with compilations() as names:
        function(np.zeros(3, np.float32))
    assert len(names) == 1
    with compilations() as names:
        function(np.ones(3, np.float32))
    assert not names


def attacked(model, tau):
    return Objective(TASK, model, conservative(TASK, tau))


PROMPTS = np.array([(K, P, Q), (H, Q, P)], np.int32)
CALLS = {
    "train": lambda model, seed, rounds, tau: train(
        jax.random.key(seed), model, TASK, dataclasses.replace(TINY, rounds=rounds), attack=ATTACKS["coordinate"]()
    ),
    "search": lambda model, seed, rounds, tau: search(
        jax.random.key(seed), ATTACKS["coordinate"](), attacked(model, tau), PROMPTS, budget=30, index=seed
    ),
    "confirm": lambda model, seed, rounds, tau: confirm(attacked(model, tau), PROMPTS),
    "count": lambda model, seed, rounds, tau: exact.count(model, TASK, {"it": conservative(TASK, tau)}),
    "matched_policy": lambda model, seed, rounds, tau: matched_policy(
        jax.random.key(seed), model, TASK, 0.01 * rounds, samples=64
    ),
    "clean_behaviour": lambda model, seed, rounds, tau: clean_behaviour(
        jax.random.key(seed), model, TASK, {"it": conservative(TASK, tau)}, samples=1
    ),
}


@pytest.mark.parametrize("name", mostly_slow(CALLS, "train", "count"))
def test_second_call_compiles_nothing(lively, name):
    models = [lively(TASK, seed=seed, layers=1) for seed in range(2)]
    jax.block_until_ready(CALLS[name](models[0], 0, 1, 0.0))
    for seed, rounds, tau in [(1, 1, 0.0), (0, 4, 0.0), (0, 1, -2.5)]:
        with compilations() as names:
            jax.block_until_ready(CALLS[name](models[seed], seed, rounds, tau))
        assert not names, f"{name} with key and weights {seed}, {rounds} rounds, tau {tau} compiled {names}"


@pytest.mark.parametrize("name", ["search", "confirm", "count", "clean_behaviour"])
def test_measured_threshold_compiles_nothing_more(lively, name):
    model = lively(TASK, seed=0, layers=1)
    measured = matched_policy(jax.random.key(0), model, TASK, 0.01, samples=64).tau
    jax.block_until_ready(CALLS[name](model, 0, 1, 0.0))
    with compilations() as names:
        jax.block_until_ready(CALLS[name](model, 0, 1, measured))
    assert not names, f"a threshold from matched_policy made {name} compile {names}"


def test_options_that_xla_does_not_know_are_left_out(monkeypatch):
    monkeypatch.setitem(compilation.SOONER, "xla_cpu_no_such_option", True)
    assert not compilation.known("xla_cpu_no_such_option", True) and compilation.known(*next(iter(LEVEL.items())))
    with pytest.raises(jax.errors.JaxRuntimeError, match="No such compile option"):
        jax.jit(lambda x: x + 1, compiler_options=compilation.SOONER)(1)
    assert compilation.compiled_sooner()(lambda x: x + 1)(1) == 2


def test_what_is_compiled_sooner_is_one_program_alone_and_a_part_of_another(monkeypatch):
    asked, jit = [], jax.jit
    assert all(compilation.known(*option) for option in compilation.SOONER.items()), "here, and not within what follows"
    monkeypatch.setattr(compilation.jax, "jit", lambda *given, **named: asked.append(named) or jit(*given, **named))

    @compilation.compiled_sooner("power")
    def raised(x, power):
        return x**power

    with compilations() as names:
        assert raised(np.float32(3), power=2) == raised(np.float32(-3), power=2) == 9
    assert [name for name in names if "raised" in name] == ["jit(raised)"] and len(asked) == 1
    assert asked[0]["compiler_options"] == compilation.SOONER
    with compilations() as names:
        assert jit(lambda x: raised(x, power=3) + 1)(np.float32(2)) == 9
        assert jax.vmap(lambda x: raised(x, 2))(np.arange(3.0)).tolist() == [0, 1, 4]
    assert not any("raised" in name for name in names), "JAX refuses options within a program"


@pytest.mark.parametrize("factory", [*TASKS.values(), *ATTACKS.values()])
def test_factories_return_one_object(factory):
    assert factory() is factory()
