"""A population's members are what they would be alone, up to rounding, whoever else is in it."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_training import TASK, TINY, Clock, equal, linear

from testbed.attacks import ATTACKS
from testbed.runs import checkpoints
from testbed.training import population
from testbed.training.oracle import SOURCES
from testbed.training.population import train_population
from testbed.training.rounds import program_digest, train
from testbed.training.schedule import Schedule

ATTACK = ATTACKS["coordinate"]()


def together(seeds, schedule=TINY, attack=ATTACK, **more):
    """The seeds trained as one population, each with a key and a first model of its own."""
    keys = jnp.stack([jax.random.key(seed) for seed in seeds])
    return train_population(keys, [linear(seed) for seed in seeds], TASK, schedule, attack=attack, **more)


def alone(seed, schedule=TINY, attack=ATTACK):
    return train(jax.random.key(seed), linear(seed), TASK, schedule, attack=attack)


@pytest.fixture(scope="module")
def three():
    return together((0, 1, 2))


def test_each_member_is_trained_as_alone_up_to_rounding(three):
    for seed, (model, history) in enumerate(three):
        lone, expected = alone(seed)
        np.testing.assert_allclose(model.weight, lone.weight, rtol=0, atol=1e-5)
        np.testing.assert_allclose(history.loss, expected.loss, rtol=0, atol=1e-5)
        np.testing.assert_array_equal(history.found, expected.found)
        np.testing.assert_array_equal(history.pool, expected.pool)


def test_a_member_does_not_depend_on_who_else_is_there(three):
    """Bit for bit, at another place among other companions."""
    others = together((7, 0, 9))
    assert equal(others[1], three[0])
    assert not equal(others[0], three[0])


def test_the_best_model_is_each_member_s_own():
    schedule = Schedule(steps=32, batch=4, learning_rate=0.5, units=8, best=True)
    kept = together((0, 1, 2), schedule, None)
    units = [history.loss.reshape(8, -1).mean(axis=1).argmin() for _, history in kept]
    assert len(set(units)) > 1, "they are not of one unit"
    for seed, (model, _) in enumerate(kept):
        np.testing.assert_allclose(model.weight, alone(seed, schedule, None)[0].weight, rtol=0, atol=1e-4)


def test_a_stopped_population_goes_on_to_the_same_bits(three, tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoints, "EVERY", 0.0)

    def stop(done, total):
        if done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        together((0, 1, 2), watch=stop, checkpoint=tmp_path / "state")
    seen = []
    again = together((0, 1, 2), watch=lambda *at: seen.append(at), checkpoint=tmp_path / "state")
    assert seen[0] == (5, 8) and seen[-1] == (8, 8)
    assert equal(again, three)
    together((0, 1, 3), watch=lambda *at: seen.append(at), checkpoint=tmp_path / "state")
    assert (0, 8) in seen, "the state of other members is none of theirs"


def test_a_population_is_named_by_its_size_too_and_the_lone_name_stays():
    name = lambda members: population.program_digest(TASK, TINY, ATTACK, model=linear(), members=members)
    lone = program_digest(TASK, TINY, ATTACK, model=linear())
    assert len({name(1), name(2), name(3), lone}) == 4 and name(2) == name(2)
    slower = dataclasses.replace(TINY, learning_rate=1e-3)
    assert population.program_digest(TASK, slower, ATTACK, model=linear(), members=2) != name(2)


def test_what_cannot_be_done_together_is_refused():
    with pytest.raises(ValueError, match=r"oracle is asked about one model at a time; .*--population=1"):
        together((0, 1), attack=SOURCES["oracle"]())
    with pytest.raises(ValueError, match="2 rounds need an attack"):
        together((0, 1), attack=None)


def test_a_broken_member_is_named_and_so_is_its_step():
    schedule = Schedule(steps=40, batch=2, units=4)
    models = [Clock(jnp.zeros(()), limit=1e-6), Clock(jnp.full((), -1.0), limit=1e-6)]
    with pytest.raises(FloatingPointError, match="member 0 of a population: the loss became nan at step"):
        train_population(jax.random.split(jax.random.key(0), 2), models, TASK, schedule)
