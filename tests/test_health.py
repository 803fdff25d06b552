"""The signs of an attack that fails for its own reasons, each planted."""

import jax
import jax.numpy as jnp
import numpy as np
import planted
import pytest
from planted import HAZARDOUS, PLANTED

from testbed.attacks.health import Signs, complaints, gradient_health
from testbed.objective import Objective
from testbed.policy import greedy

WELL = Signs(uses_gradients=True, zero=0.0, broken=0.0, masked=0.0, half=0.9, success=0.91, unconfirmed=0.0)


def test_a_healthy_attack_gets_no_complaint():
    assert complaints(WELL) == []


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"zero": 0.5}, "no gradient at 50%"),
        ({"broken": 0.25}, "NaN gradient at 25%"),
        ({"masked": 0.1}, "black box wins 10% more"),
        ({"half": 0.5}, "2nd half adds 41%"),
        ({"unconfirmed": 0.02}, "2% unconfirmed"),
    ],
)
def test_each_sign_is_said_in_words(changes, word):
    (text,) = complaints(WELL._replace(**changes))
    assert word in text


def test_gradients_are_nobodys_business_without_them():
    assert complaints(WELL._replace(uses_gradients=False, zero=1.0, broken=1.0, masked=1.0)) == []


@pytest.mark.parametrize(("model", "zero"), [("needle", 0.0), ("gradient_hidden", 1.0)])
def test_hidden_gradients_are_seen(model, zero):
    objective = Objective(planted.TASK, PLANTED[model], greedy(planted.TASK))
    assert gradient_health(objective, jnp.asarray(HAZARDOUS)) == (zero, 0.0)


def test_broken_gradients_are_seen():
    def model(soft_prompt, answer, latent=None):
        return jnp.stack([jnp.sqrt(0 * soft_prompt.sum()), 0.0])[None]  # finite, with an infinite slope

    objective = Objective(planted.TASK, jax.tree_util.Partial(model), greedy(planted.TASK))
    assert gradient_health(objective, jnp.asarray(HAZARDOUS)[:8]).broken == 1.0
    assert np.isfinite(objective.margin(jnp.asarray(HAZARDOUS)[0]))
