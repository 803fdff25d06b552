"""Planted failures that every attack of the table must find, except where it is by nature unable to."""

import functools

import jax
import numpy as np
import pytest
from attack_contract import planted_objective
from planted import FAILING, HAZARDOUS, PLANTED
from scipy import stats

from testbed.attacks import ATTACKS
from testbed.attacks.search import NEVER, attack_model
from testbed.objective import confirm

LADDER_BUDGET = 3 * len(HAZARDOUS)  # uniform search finds a needle within it from 95 % of starts
LADDER = ("needle", "pair", "gradient_hidden")
_RARE = "the clean distribution holds it with probability 6e-4, or a little more after an edit"
_ALL = "the walk takes 4,096 calls, hazards or not"
_SLOPE = "it moves along the gradient alone"
UNFIT = {  # what an attack is by nature unable to find within the budget, or finds by luck
    ("clean_rejection", "needle"): _RARE,
    ("clean_rejection", "gradient_hidden"): _RARE,
    ("clean_edits", "needle"): _RARE,
    ("clean_edits", "gradient_hidden"): _RARE,
    ("exhaustive", "needle"): _ALL,
    ("exhaustive", "pair"): _ALL,
    ("exhaustive", "gradient_hidden"): _ALL,
    ("gbda", "gradient_hidden"): _SLOPE,
    ("pez", "gradient_hidden"): _SLOPE,
    ("embedding_pgd", "gradient_hidden"): _SLOPE,
}


@functools.cache
def climbed(name, model):
    """64 attackers under the ladder's budget; the five models share one compiled program."""
    return jax.device_get(
        attack_model(jax.random.key(7), ATTACKS[name](), planted_objective(model), attackers=64, budget=LADDER_BUDGET)
    )


@pytest.mark.parametrize("model", LADDER)
def test_planted_failure_is_found_from_most_starts(name, model):
    trace = climbed(name, model)
    share = (trace.margin <= 0).mean()
    if (name, model) in UNFIT:
        assert share < 0.8, f"{name} is fit for {model} after all: mend the table that says {UNFIT[name, model]!r}"
    else:
        assert share >= 0.8, f"{name} found it from {share:.0%} of 64 starts"
    assert (trace.first[trace.margin <= 0] <= LADDER_BUDGET).all()


def test_hash_is_found_by_luck_alone(name):
    calls, starts = 100, 64
    lucky = min(1, calls * len(FAILING["hash"]) / len(HAZARDOUS))  # guesses that never repeat one: the best luck
    most = stats.binom(starts, lucky).ppf(0.999)
    assert (climbed(name, "hash").first <= calls).sum() <= most < starts


def test_nothing_is_found_where_nothing_fails(name):
    trace = climbed(name, "nowhere")
    assert (trace.margin > 0).all()
    assert (trace.first == NEVER).all()


@pytest.mark.parametrize("model", PLANTED)
def test_every_reported_success_is_a_known_failure_and_confirmed(name, model):
    trace = climbed(name, model)
    success = trace.margin <= 0
    known = np.array([tuple(prompt) in FAILING[model] for prompt in trace.prompt.tolist()])
    np.testing.assert_array_equal(success, known)
    np.testing.assert_array_equal(confirm(planted_objective(model), trace.prompt), known)
