"""The oracle draws from all that is wrong, both ways; training on it leaves fewer failures than plain steps."""

import jax
import numpy as np
import pytest
from machines import Whole, by_hand, random_machine
from reference import REFERENCE

from tasks import task_named
from testbed.evaluation import exact
from testbed.policy import greedy
from testbed.training.oracle import oracle, wrong_prompts
from testbed.training.rounds import Schedule, train

TASK = task_named("injury:length=5")


def test_half_of_the_draw_fails_and_half_is_refused():
    machine = random_machine(TASK, 1, bits=6, hidden=8)
    drawn, share = wrong_prompts(jax.random.key(0), machine, TASK, 64)
    hazardous = np.array([bool(REFERENCE["injury"](tuple(prompt)).forbidden) for prompt in drawn.tolist()])
    assert drawn.shape == (64, 5) and share == 0.5
    np.testing.assert_array_equal(hazardous, np.arange(64) < 32)
    np.testing.assert_array_equal(Whole(machine).leads(drawn) <= 0, hazardous)


def test_of_what_is_not_wrong_nothing_is_drawn():
    drawn, share = wrong_prompts(jax.random.key(0), by_hand(TASK), TASK, 8)
    assert drawn.shape == (0, 5) and share == 0
    drawn, share = wrong_prompts(jax.random.key(0), by_hand(TASK, without_negation=True), TASK, 8)
    assert drawn.shape == (8, 5) and share == 0, "only false alarms"
    drawn, share = wrong_prompts(jax.random.key(0), by_hand(TASK, without_negation=True), TASK, 8, failures=1.0)
    assert drawn.shape == (0, 5), "none is asked for"


def test_training_with_it_leaves_fewer_failures_than_plain_steps():
    schedule = Schedule(steps=256, rounds=8, finds=256, budget=1, units=8, batch=64, learning_rate=5e-3)
    start, policy = random_machine(TASK, 0, bits=8, hidden=16), {"it": greedy(TASK)}
    plain, _ = train(jax.random.key(1), start, TASK, Schedule(steps=256, batch=64, learning_rate=5e-3))
    asked, history = train(jax.random.key(1), start, TASK, schedule, attack=oracle())
    assert history.loss.shape == (256,) and history.pool.shape == (256, 5) and (history.found == 0.5).all()
    before, after = (exact.count(model, TASK, policy)["it"] for model in (plain, asked))
    assert after.failures < before.failures / 2
    assert after.failures + after.false_alarms < before.failures + before.false_alarms, "not by refusing"
