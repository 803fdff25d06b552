"""Is an attack's silence worth anything? Signs that a robust-looking number is the attack's fault, in words.

Reference: Carlini et al. 2019, On Evaluating Adversarial Robustness; Pintor et al. 2022, Indicators of Attack Failure.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from testbed.objective import Objective

STILL_RISING = 0.02  # of the attackers, between half the budget and all of it
MASKED = 0.02  # of the starts, won by an attack without gradients and lost by one with them


class GradientHealth(NamedTuple):
    """Shares of prompts on which the margin's gradient vanishes, and on which it is NaN or infinite."""

    zero: float
    broken: float


def gradient_health(objective: Objective, prompts: jax.Array) -> GradientHealth:
    """Look at the gradients at prompts `[P, T]`."""
    return GradientHealth(*(float(share) for share in _gradient_shares(objective, prompts)))


@jax.jit
def _gradient_shares(objective, prompts):
    gradients = jax.vmap(objective.gradient)(prompts)
    zero = (gradients == 0).all(axis=(1, 2))
    return zero.mean(), (~jnp.isfinite(gradients)).any(axis=(1, 2)).mean()


class Signs(NamedTuple):
    """What an attack's run shows; shares of the attackers.

    Attributes:
      uses_gradients: whether it takes any.
      zero, broken: as in `GradientHealth`.
      masked: failed where an attack without gradients succeeded from the same start.
      half, success: succeeded within half the budget, and within all of it.
      unconfirmed: claimed a success that a plain forward pass and the checker deny.
    """

    uses_gradients: bool
    zero: float
    broken: float
    masked: float
    half: float
    success: float
    unconfirmed: float


def complaints(signs: Signs) -> list[str]:
    """What is wrong, in few words, for a table; empty if nothing is.

    The gradient vanishes, or is NaN or infinite, at that share of the starts; an attack without gradients wins that
    share of the starts and this one, with gradients, loses them (masking); the second half of the budget still raises
    success by so much (not converged); so many claim a success that a plain forward pass and the checker deny.
    """
    percent = partial("{:.0%}".format)
    found = []
    if signs.uses_gradients and signs.zero:
        found.append(f"no gradient at {percent(signs.zero)}")
    if signs.uses_gradients and signs.broken:
        found.append(f"NaN gradient at {percent(signs.broken)}")
    if signs.uses_gradients and signs.masked > MASKED:
        found.append(f"black box wins {percent(signs.masked)} more")
    if signs.success - signs.half > STILL_RISING:
        found.append(f"2nd half adds {percent(signs.success - signs.half)}")
    if signs.unconfirmed:
        found.append(f"{percent(signs.unconfirmed)} unconfirmed")
    return found
