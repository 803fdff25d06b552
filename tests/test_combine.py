"""What restarts, chains, ensembles, placements and warm starts do with the attacks that they are made of."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from attack_contract import POOL, margins_of, planted_objective, walk
from conftest import slow
from planted import HAZARDOUS, NEEDLE, PLANTED
from reference import F0, H, K, P

from tasks.injury import injury
from testbed.attacks import ATTACKS
from testbed.attacks.combine import chain, ensemble, restarts
from testbed.attacks.placement import placed, view, warm_start
from testbed.attacks.search import Attack, score, search

START = (K, H, P, P)  # the needle is three tokens away


@functools.cache
def parrot(gradients=0, candidates=2):
    """Scores its start again and again."""

    def step(key, objective, prompt):
        return prompt, score(objective, jnp.tile(prompt, (candidates, 1)))

    return Attack("parrot", lambda key, objective, prompt, margin: prompt, step, gradients, lambda _: candidates)


def walked(attack, model="needle", start=START, steps=12):
    """What one attacker scores: prompts `[steps, C, T]`, margins `[steps, C]`."""
    scored = walk(attack, planted_objective(model), jnp.asarray(start), jax.random.key(5), steps)[1]
    assert scored.prompts.shape[1] == attack.candidates(planted_objective(model))
    return jax.device_get(scored)


def test_restarts_come_when_they_should_and_from_hazards():
    starts = [tuple(prompt.tolist()) for prompt in walked(restarts(parrot(), 3)).prompts[:, 0]]
    assert starts[:3] == [START] * 3
    assert [len(list(run)) for _, run in itertools.groupby(starts)] == [3, 3, 3, 3]
    assert set(starts) <= set(HAZARDOUS)


def test_a_chain_hands_on_the_best_that_was_found():
    found = walked(chain(ATTACKS["uniform"](), parrot(), 2), steps=6)
    for prompts, margins in zip(found.prompts, found.margins, strict=True):
        assert (prompts[16:] == prompts[margins[:16].argmin()]).all()
    assert chain(parrot(3), parrot(1), 2).gradients == 8


@pytest.mark.parametrize("start", [START, NEEDLE])
def test_what_fails_first_is_kept_and_all_before_it_is_told(start):
    # Two tokens of the needle suffice to fail, and each further one fails more.
    softer = dataclasses.replace(PLANTED["needle"], height=1.5)
    objective = dataclasses.replace(planted_objective("needle"), model=softer)
    uniform, stops = ATTACKS["uniform"](), ATTACKS["uniform"](stops=True)
    heard, told = (walk(attack, objective, jnp.asarray(start), jax.random.key(5), 12)[1] for attack in (uniform, stops))
    prompts, margins = np.asarray(heard.prompts).reshape(-1, 4), np.asarray(heard.margins).ravel()
    at = 0 if start == NEEDLE else int((margins <= 0).argmax())
    first, lowest = (start, -2.5) if start == NEEDLE else (prompts[at], margins[at])
    assert margins[at:].min() < lowest or start == NEEDLE, "a later one fails more, so the best would be another"
    assert (np.asarray(told.prompts).reshape(-1, 4)[at:] == first).all()
    assert (np.asarray(told.prompts).reshape(-1, 4)[:at] == prompts[:at]).all()
    np.testing.assert_array_equal(np.asarray(told.margins).ravel(), [*margins[:at], *[lowest] * (len(margins) - at)])
    assert stops.cost(objective) == uniform.cost(objective)


@pytest.mark.parametrize("sizes", [dict(), dict(length=16, vocab=16), dict(length=16, vocab=64)])
def test_the_shares_of_auto_are_about_equal(sizes):
    auto, allowed = ATTACKS["auto"](), injury(**sizes).allowed
    shares = 2 * 8, 16 + 3, 16, 16  # two steps of chains; gcg with its gradient; 16 tokens, or 8 twice; children
    objective = view(planted_objective("needle"), allowed=allowed)
    assert auto.cost(objective).forwards == sum(shares)


def test_an_ensemble_is_its_members_side_by_side():
    team = ensemble(ATTACKS["uniform"](), parrot(gradients=2, candidates=10))
    prompts = walked(team).prompts
    assert prompts.shape[1] == 16 + 10  # the second costs sixteen calls a step: two steps of the first
    assert (prompts[:, 16:] == np.array(START)).all()
    assert len(np.unique(prompts[:, :16].reshape(-1, 4), axis=0)) > 100


PLACEMENTS = {  # where -> positions that may change, and how many of them at once
    "prefix": (dict(prefix=2), {0, 1}, 2),
    "suffix": (dict(suffix=2), {2, 3}, 2),
    "ends": (dict(prefix=1, suffix=1), {0, 3}, 2),
    "edits": (dict(edits=2), {0, 1, 2, 3}, 2),
    "prefix, one edit": (dict(prefix=3, edits=1), {0, 1, 2}, 1),
}


@pytest.mark.parametrize(
    ("inner", "placement"),
    [
        *(("uniform", where) if where in ("ends", "edits") else slow("uniform", where) for where in PLACEMENTS),
        ("gcg", "prefix, one edit"),
        slow("exhaustive", "ends"),
    ],
)
def test_every_prompt_scored_obeys_the_placement(inner, placement):
    where, positions, most = PLACEMENTS[placement]
    scored = walked(placed(ATTACKS[inner](), **where))
    prompts = scored.prompts.reshape(-1, 4)
    changed = prompts != np.array(START)
    assert changed.sum(axis=1).max() == most
    assert set(np.flatnonzero(changed.any(axis=0)).tolist()) <= positions
    if inner == "uniform":
        assert set(np.flatnonzero(changed.any(axis=0)).tolist()) == positions
    np.testing.assert_allclose(scored.margins.ravel(), margins_of(planted_objective("needle"), prompts), atol=1e-5)


@pytest.mark.parametrize("inner", ["genetic", "gbda", slow("beam"), slow("learned")])
def test_other_attacks_obey_a_placement_too(inner):
    scored = walked(placed(ATTACKS[inner](), prefix=3, edits=2), steps=8)
    changed = scored.prompts.reshape(-1, 4) != np.array(START)
    assert not changed[:, 3].any()
    assert set(changed.sum(axis=1).tolist()) == {0, 1, 2}


@pytest.mark.parametrize(("edits", "least"), [slow(1, 1.5), (2, 0.5), slow(3, -0.5), (None, -0.5)])
def test_a_placement_is_searched_to_its_end(edits, least):
    """Each edit can come one token nearer to the needle, and no more."""
    attack, starts = placed(ATTACKS["coordinate"](), edits=edits), jnp.tile(jnp.asarray(START), (8, 1))
    trace = search(jax.random.key(0), attack, planted_objective("needle"), starts, budget=2000)
    np.testing.assert_allclose(trace.margin, least)


def test_placement_that_makes_no_sense_is_refused():
    with pytest.raises(ValueError, match="edits -1 must not be negative"):
        placed(parrot(), edits=-1)


def test_a_warm_start_begins_and_restarts_in_the_pool():
    pool = np.array([(K, F0, P, P), (H, H, P, F0)])
    prompts = walked(warm_start(ATTACKS["uniform"](), pool)).prompts.reshape(-1, 4)
    assert set(map(tuple, prompts.tolist())) == set(map(tuple, pool.tolist()))
    again = walked(warm_start(restarts(parrot(), 2), pool)).prompts[:, 0]
    assert set(map(tuple, again.tolist())) == set(map(tuple, pool.tolist()))
    assert warm_start(parrot(), pool) is warm_start(parrot(), pool.copy())


@pytest.mark.parametrize("pool", [POOL[:0], POOL[0]])
def test_pool_that_is_no_list_of_prompts_is_refused(pool):
    with pytest.raises(ValueError, match="a pool must be prompts"):
        warm_start(parrot(), pool)


def test_the_start_is_as_far_as_it_says():
    assert sum(a != b for a, b in zip(START, NEEDLE, strict=True)) == 3
