"""Strength against closed forms: guessing gains what its median luck gains, enumeration all there is."""

import jax
import numpy as np
import pytest
from conftest import slow

from tasks.injury import injury
from testbed.attacks import ATTACKS, attack_model
from testbed.evaluation import exact
from testbed.evaluation.strength import search_gain, strength
from testbed.objective import Objective
from testbed.policy import greedy
from testbed.task import space_size

MARGINS = np.arange(1000, dtype=np.float32)


@pytest.fixture(scope="module")
def searched(lively):
    """An injury filter of random weights, its objective and the margins of all its hazards."""
    task = injury(length=5)
    objective = Objective(task, lively(task, layers=1), greedy(task))
    return objective, exact.hazardous_margins(objective.model, task, greedy(task))


@pytest.mark.parametrize(
    ("reached", "decades"),
    [([0], 3), ([9], 2), ([999], 0), ([1e4], 0), ([0, 0, 99], 3), ([0, 9], 2.5), ([-5], 3), ([0.5], 3), ([8.99995], 2)],
)
def test_strength_is_decades_of_the_margins_distribution(reached, decades):
    assert strength(np.array(reached, np.float32), MARGINS) == pytest.approx(decades)


@pytest.mark.parametrize(("runs", "hazards"), [(0, 5), (5, 0)])
def test_strength_of_nothing_is_refused(runs, hazards):
    with pytest.raises(ValueError, match=f"not {runs} and {hazards}"):
        strength(np.zeros(runs), np.zeros(hazards))


def test_margins_are_those_of_all_hazards(searched, all_prompts):
    objective, margins = searched
    prompts = all_prompts(objective.task)
    hazards = prompts[np.asarray(jax.vmap(objective.task.hazardous)(prompts))]
    assert margins.dtype == np.float32
    np.testing.assert_allclose(margins, np.sort(jax.jit(jax.vmap(objective.margin))(hazards)), atol=1e-4)


@pytest.mark.parametrize("steps", [slow(8), 40])
def test_guessing_gains_nothing_but_the_median(searched, steps):
    """With n draws F(best) is Beta(1, n), whose median is 1 - 2**(-1 / n): a gain of log10(1 / ln 2) = 0.16."""
    objective, margins = searched
    trace = attack_model(jax.random.key(0), ATTACKS["uniform"](), objective, attackers=2048, budget=1 + 8 * steps)
    worth, draws = strength(trace.margin, margins), 1 + 8 * steps
    assert trace.cost.forwards == draws
    assert worth == pytest.approx(-np.log10(-np.expm1(-np.log(2) / draws)), abs=0.05)
    assert search_gain(worth, draws) == pytest.approx(0.16, abs=0.06)


def test_enumeration_is_worth_all_hazards(searched):
    objective, margins = searched
    budget = 1 + space_size(objective.task)
    trace = attack_model(jax.random.key(0), ATTACKS["exhaustive"](), objective, attackers=2, budget=budget)
    worth = strength(trace.margin, margins)
    assert worth == pytest.approx(np.log10(len(margins)))
    # Most of the walk is through prompts that are no hazard: it is a poor search for its price.
    assert search_gain(worth, budget) == pytest.approx(np.log10(len(margins) / budget))
