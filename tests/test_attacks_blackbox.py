"""Attacks without gradients: sampling, coordinate search, phrases, enumeration."""

import jax
import numpy as np
import pytest
from attack_contract import *  # noqa: F403
from attack_contract import planted_objective, target, walk
from attack_ladder import *  # noqa: F403
from planted import PLANTED, TASK

from testbed.attacks import ATTACKS
from testbed.attacks.search import attack_model
from testbed.task import prompts_of_ids, space_size

NAMES = ["uniform", "clean_rejection", "clean_edits", "coordinate", "infill", "exhaustive"]


@pytest.mark.parametrize("kind", ["planted", "classifier"])
def test_exhaustive_search_walks_through_every_prompt_once(kind):
    objective = planted_objective("nowhere") if kind == "planted" else target(kind).objective
    attack, size = ATTACKS["exhaustive"](), space_size(objective.task)
    space = prompts_of_ids(objective.task, np.arange(size))
    start = objective.start(jax.random.key(0))
    orders = [walk(attack, objective, start, jax.random.key(seed), size // 16)[1].prompts for seed in (0, 1)]
    for prompts in orders:
        assert size % 16 == 0
        np.testing.assert_array_equal(np.unique(np.asarray(prompts).reshape(size, -1), axis=0), space)
    assert (orders[0] != orders[1]).any()


@pytest.mark.parametrize("model", PLANTED)
def test_exhaustive_search_misses_nothing_given_the_calls(model):
    trace = attack_model(
        jax.random.key(0), ATTACKS["exhaustive"](), planted_objective(model), attackers=8, budget=1 + space_size(TASK)
    )
    assert (trace.margin > 0).all() if model == "nowhere" else (trace.margin <= 0).all()
