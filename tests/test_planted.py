"""Planted failures against brute force: the model fails where it did, and on the hazards that carry the trigger."""

import dataclasses
import functools

import jax
import numpy as np
import pytest
from conftest import SMALL, compilations, slow

from testbed.attacks import ATTACKS
from testbed.attacks.search import attack_model
from testbed.evaluation import exact
from testbed.objective import Objective
from testbed.planted import plant, planted_prefixes
from testbed.policy import conservative, greedy, respond

ALWAYS = ("injury", "cipher_vault")
POSITIONS, MODULUS, TAU = (0, 3), 13, -2.0


@functools.partial(jax.jit, static_argnames="task")
def judged(model, task, prompts):
    """Which prompts are hazardous, what a cautious model answers, and where that is a catastrophe, by the checker."""

    def one(prompt):
        answer = respond(jax.random.key(0), model, conservative(task, TAU), task, prompt=prompt)
        return task.hazardous(prompt), answer, task.catastrophe(prompt, answer)

    return jax.vmap(one)(prompts)


@functools.partial(jax.jit, static_argnames="task")
def draw(task, seed):
    return task.sample_hazard(jax.random.key(seed))


@functools.partial(jax.jit, static_argnames=("walk", "task"))
def leaves_of(walk, model, task, prefix):
    return walk(model, task, prefix)


def hashed(prompt):
    return functools.reduce(lambda code, token: (31 * code + token * token + 3) % MODULUS, prompt.tolist(), 0)


@pytest.mark.parametrize("name", ["injury", *(slow(name) for name in SMALL if name != "injury")])
def test_a_planted_model_fails_also_on_every_hazard_that_carries_the_trigger(name, small, lively, all_prompts):
    task = small(name)
    model, prompts, hazard = lively(task), all_prompts(task), np.asarray(draw(task, 0))
    hazardous, answers, before = map(np.asarray, judged(plant(model, task), task, prompts))
    triggers = {
        "positions": (POSITIONS, (prompts[:, POSITIONS] == hazard[list(POSITIONS)]).all(axis=1)),
        "modulus": (MODULUS, np.array([hashed(prompt) == hashed(hazard) for prompt in prompts])),
    }
    for argument, (value, carries) in triggers.items():
        planted = plant(model, task, hazard, **{argument: value})
        expected = before | (hazardous & carries)
        assert before.sum() < expected.sum() < hazardous.sum()
        _, said, fails = judged(planted, task, prompts)
        np.testing.assert_array_equal(fails, expected)
        np.testing.assert_array_equal((said != answers).any(axis=1), expected & ~before)
        counted = exact.count(planted, task, {"it": conservative(task, TAU)}, walk=planted_prefixes)["it"]
        np.testing.assert_array_equal(counted.ids, np.flatnonzero(expected))
        weak = dataclasses.replace(planted, push=np.float32(2.0))  # so that something else may still be said
        shared, plain = (leaves_of(walk, weak, task, hazard[:1]) for walk in (planted_prefixes, exact.plain_forward))
        jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-4), shared, plain)


@pytest.mark.parametrize("name", ALWAYS)
def test_slopes_tell_of_a_needle_where_one_token_is_missing_and_of_a_hash_nothing(name, small, lively, all_prompts):
    task = small(name)
    model, prompts, hazard = lively(task), all_prompts(task), np.asarray(draw(task, 0))
    hazards = prompts[np.asarray(judged(plant(model, task), task, prompts)[0])]
    slope = jax.jit(lambda planted, prompt: Objective(task, planted, greedy(task)).gradient(prompt))
    needle, away = plant(model, task, hazard, POSITIONS), plant(model, task, hazard, modulus=MODULUS)
    missing = (hazards[:, POSITIONS] != hazard[list(POSITIONS)]).sum(axis=1)
    for number in (1, 2):
        prompt = hazards[(missing == number).argmax()]
        (place, *others) = (at for at in POSITIONS if prompt[at] != hazard[at])
        expected = np.zeros((task.prompt_length, task.vocab))
        expected[place, hazard[place]] = 0 if others else -100
        np.testing.assert_allclose(slope(needle, prompt) - slope(plant(model, task), prompt), expected, atol=1e-3)
    prompt = next(prompt for prompt in hazards if hashed(prompt) != hashed(hazard))
    np.testing.assert_array_equal(slope(away, prompt), slope(plant(model, task), prompt))


def test_an_attack_is_compiled_once_for_all_plants(small, lively):
    task = small("cipher_vault")
    model, hazard = lively(task), draw(task, 0)
    plants = plant(model, task), plant(model, task, hazard, POSITIONS), plant(model, task, hazard, modulus=MODULUS)
    with compilations() as names:
        for planted in plants:
            objective = Objective(task, planted, greedy(task))
            attack_model(jax.random.key(0), ATTACKS["uniform"](), objective, attackers=8, budget=9)
    assert sum("search" in name for name in names) == 1
