"""What local searches share: a current prompt, moves that must lower its margin, and restarts when none does."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from testbed.attacks.search import Scored
from testbed.objective import Objective


class Climb(NamedTuple):
    """The current prompt `[T]`, its margin, and the steps since the last improvement."""

    prompt: jax.Array
    margin: jax.Array
    stale: jax.Array


def begin(prompt: jax.Array, margin: jax.Array) -> Climb:
    """A climb that starts at a scored prompt."""
    return Climb(prompt, margin, jnp.zeros((), jnp.int32))


def move(key: jax.Array, objective: Objective, state: Climb, candidates: jax.Array, patience) -> tuple[Climb, Scored]:
    """Score candidates `[C, T]`, take the best if it lowers the margin, and restart after `patience` stale steps.

    A move out of the hazard has a huge margin, so it is never taken. A restart replaces the last candidate by a fresh
    hazardous prompt, so that a step always costs C calls.
    """
    restart = state.stale >= patience
    fresh = objective.start(key)
    candidates = candidates.at[-1].set(jnp.where(restart, fresh, candidates[-1]))
    margins = jax.vmap(objective.margin)(candidates)
    pick = jnp.where(restart, len(candidates) - 1, jnp.where(jnp.isnan(margins), jnp.inf, margins).argmin())
    take = restart | ~(margins[pick] >= state.margin)
    state = Climb(
        jnp.where(take, candidates[pick], state.prompt),
        jnp.where(take, margins[pick], state.margin),
        jnp.where(take, 0, state.stale + 1),
    )
    return state, Scored(candidates, margins)
