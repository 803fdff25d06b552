"""The default held-out attack."""

import jax
import numpy as np
import pytest
from attack_contract import *  # noqa: F403
from attack_ladder import *  # noqa: F403
from attack_ladder import climbed
from conftest import SMALL
from planted import FAILING

from testbed.attacks import ATTACKS
from testbed.attacks.search import attack_model
from testbed.evaluation import exact
from testbed.objective import Objective
from testbed.policy import conservative, greedy

pytestmark = pytest.mark.slow  # four attacks in one program; each has its own quick tests
NAMES = ["auto"]
FEW = 3


@pytest.mark.parametrize("model", [model for model in FAILING if FAILING[model]])
def test_auto_is_blind_to_no_planted_failure(model):
    assert (climbed("auto", model).margin <= 0).any()


@pytest.mark.slow
@pytest.mark.parametrize("few", [True, False])
@pytest.mark.parametrize("task", SMALL)
def test_auto_is_blind_to_no_task(task, few, small, lively):
    """Random models of every task, as they are and with a threshold that leaves three failures, or none."""
    task = small(task)
    model, policy = lively(task), greedy(task)
    margins = exact.hazardous_margins(model, task, policy)
    if few:
        # Where refusing is the only other answer, a threshold moves every margin alike.
        policy = conservative(task, float(margins[FEW - 1 : FEW + 1].mean()))
    failures = exact.count(model, task, {"it": policy})["it"].failures
    objective = Objective(task, model, policy)
    budget = 1500 // objective.forwards
    found = attack_model(jax.random.key(0), ATTACKS["auto"](), objective, attackers=64, budget=budget)
    assert (np.asarray(found.margin) <= 0).any() == (failures > 0)
