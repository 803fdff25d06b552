"""The moves that searches share, and what a search does with them."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import planted
import pytest
from attack_contract import slow_siblings
from conftest import slow
from planted import PLANTED
from reference import F0, F1, K, Q
from scipy import stats

from testbed.attacks import ATTACKS
from testbed.attacks.moves import (
    another,
    anything,
    anywhere,
    changes,
    deleted,
    edit,
    further,
    inserted,
    mutated,
    ranked,
)
from testbed.attacks.search import attack_model
from testbed.objective import Objective
from testbed.policy import greedy

ROW = np.array([True, False, True, True])
ALLOWED = np.array([ROW, [True] * 4, [False, True, False, False], [True, True, False, False]])
PROMPT = jnp.array([2, 0, 1, 1])


def many(draw, number=600):
    return np.asarray(jax.jit(jax.vmap(draw))(jax.random.split(jax.random.key(0), number)))


def test_another_token_is_any_other_that_is_allowed():
    tokens = many(lambda key: another(key, jnp.asarray(ROW), jnp.asarray(2)))
    assert set(tokens.tolist()) == {0, 3}
    assert stats.binomtest(int((tokens == 0).sum()), len(tokens)).pvalue > 0.01
    assert set(many(lambda key: another(key, jnp.asarray(ALLOWED[2]), jnp.asarray(1))).tolist()) == {1}


def test_a_mutation_replaces_each_token_as_often_as_it_says_by_any_other():
    prompts = many(lambda key: mutated(key, jnp.asarray(ALLOWED), PROMPT), 8000)
    assert ALLOWED[np.arange(4), prompts].all()
    for place, row in enumerate(ALLOWED):
        others = np.flatnonzero(row & (np.arange(4) != PROMPT[place]))
        seen = np.array([(prompts[:, place] == token).sum() for token in others])
        if len(others):
            assert stats.binomtest(int(seen.sum()), len(prompts), 1 / 4).pvalue > 0.01
            assert len(others) == 1 or stats.chisquare(seen).pvalue > 0.01
    changed = prompts[:, [0, 1]] != np.asarray(PROMPT)[:2]
    assert stats.binomtest(int(changed.all(axis=1).sum()), len(prompts), 1 / 16).pvalue > 0.01, "independently"


def test_anywhere_is_anywhere_in_the_space():
    prompts = many(lambda key: anywhere(key, jnp.asarray(ALLOWED)))
    assert len(np.unique(prompts, axis=0)) == ALLOWED.sum(axis=1).prod()
    assert ALLOWED[np.arange(4), prompts].all()


@pytest.mark.parametrize(("least", "most"), [(1, 1), (1, 2), (0, 2), (3, 9)])
def test_an_edit_changes_as_many_tokens_as_it_says(least, most):
    full = jnp.ones((4, 4), bool)
    changed = many(lambda key: edit(key, PROMPT, anything(full, PROMPT), most, least=least)) != PROMPT
    assert set(changed.sum(axis=1).tolist()) == set(range(least, min(most, 4) + 1))
    assert (changed.mean(axis=0) > 0.1).all()


def test_an_edit_stays_inside_the_space():
    prompts = many(lambda key: edit(key, PROMPT, anything(jnp.asarray(ALLOWED), PROMPT), 4))
    assert ALLOWED[np.arange(4), prompts].all()
    more = np.asarray(jax.jit(further, static_argnums=3)(jax.random.key(0), ALLOWED, jnp.tile(PROMPT, (99, 1)), 2))
    assert ALLOWED[np.arange(4), more].all()
    assert set((more != PROMPT).sum(axis=1).tolist()) == {0, 1, 2}


@pytest.mark.parametrize(
    ("position", "longer", "shorter"),
    [(0, [3, 0, 0, 1], [0, 1, 2, 0]), (1, [2, 3, 0, 1], [2, 1, 2, 0]), (3, [2, 0, 1, 3], [2, 0, 1, 0])],
)
def test_shifts_insert_and_delete(position, longer, shorter):
    """The prompt is 2 0 1 2; where a moved token may not stand, the old one stays."""
    full, prompt = jnp.ones((4, 4), bool), jnp.array([2, 0, 1, 2])
    some = full.at[1, 2].set(False)  # after an insertion at 0, the 2 would come to stand there
    np.testing.assert_array_equal(inserted(some, prompt, position, 3), longer)
    np.testing.assert_array_equal(deleted(full, prompt, position, 0), shorter)
    assert ALLOWED[np.arange(4), inserted(jnp.asarray(ALLOWED), PROMPT, position, 3)].all()
    assert ALLOWED[np.arange(4), deleted(jnp.asarray(ALLOWED), PROMPT, position, 2)].all()


def test_tokens_are_ranked_by_promise_then_unknown_then_current_then_forbidden():
    gradient = jnp.array([5.0, 1.0, -3.0, jnp.nan, 2.0, -jnp.inf])
    allowed = jnp.array([True, True, True, True, False, True])
    order = ranked(jax.random.key(0), changes(gradient, allowed, jnp.asarray(1)))
    np.testing.assert_array_equal(order, [5, 2, 0, 3, 1, 4])


def test_ties_are_ranked_at_random():
    orders = many(lambda key: ranked(key, jnp.array([1.0, 0.0, 1.0, 1.0])))
    assert (orders[:, 0] == 1).all()
    assert stats.chisquare(np.bincount(orders[:, 1])[[0, 2, 3]]).pvalue > 0.01


# A hazard set that single swaps can't cross: its prompts begin with a token twice, and 3 3 is not where one starts.
ISLAND = (K + 1, K + 1, F0, Q)


def islands():
    """Towards ISLAND the margin falls; only prompts that begin with a token twice are hazards."""

    def catastrophic_answers(prompt):
        return jnp.zeros((1, 1), jnp.int32), (prompt[0] == prompt[1])[None]

    def sample_hazard(key):
        return jax.random.randint(key, (), 0, 2) * jnp.array([1, 1, 0, 0]) + jnp.array([F0, F0, F1, F1])

    task = dataclasses.replace(planted.TASK, catastrophic_answers=catastrophic_answers, sample_hazard=sample_hazard)
    slope = np.zeros((4, 8), np.float32)
    slope[range(4), ISLAND] = 1
    return Objective(task, dataclasses.replace(PLANTED["needle"], slope=slope), greedy(task))


@pytest.fixture(scope="module")
def crossed():
    return lambda attack: (
        attack_model(jax.random.key(2), attack, islands(), attackers=16, budget=1200).margin <= 0
    ).mean()


@pytest.mark.parametrize(
    "name", [*slow_siblings(["gcg", "hotflip", "arca", "saliency", "annealing"]), slow("coordinate"), slow("mcmc")]
)
def test_two_token_swaps_cross_what_single_ones_cannot(crossed, name):
    assert crossed(ATTACKS[name](swaps=2)) >= 0.2
    if name in ("coordinate", "mcmc"):
        assert crossed(ATTACKS[name](swaps=1)) == 0
