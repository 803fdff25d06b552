"""What local searches share: a current prompt, moves that must lower its margin, and restarts when none does."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from testbed.attacks.moves import further
from testbed.attacks.search import Attack, Scored, comparable, score
from testbed.objective import NOT_HAZARDOUS, Objective


class Climb(NamedTuple):
    """The current prompt `[T]`, its margin, and the steps since the last improvement."""

    prompt: jax.Array
    margin: jax.Array
    stale: jax.Array


def move(
    key: jax.Array, objective: Objective, state: Climb, candidates: jax.Array, *, patience: int
) -> tuple[Climb, Scored]:
    """Score candidates `[C, T]`, take the best if it lowers the margin, and restart after `patience` stale steps.

    A prompt out of the hazard is never taken, nor one whose margin is NaN. A restart replaces the last candidate by a
    fresh hazardous prompt, so that a step always costs C calls.
    """
    restart = state.stale >= patience
    candidates = candidates.at[-1].set(jnp.where(restart, objective.start(key), candidates[-1]))
    scored = score(objective, candidates)
    margins = comparable(scored.margins)
    pick = jnp.where(restart, len(candidates) - 1, margins.argmin())
    take = margins[pick] < jnp.where(restart, NOT_HAZARDOUS, state.margin)
    state = Climb(
        jnp.where(take, candidates[pick], state.prompt),
        jnp.where(take, margins[pick], state.margin),
        jnp.where(take, 0, state.stale + 1),
    )
    return state, scored


def climber(
    name: str,
    propose: Callable[[jax.Array, Objective, Climb], jax.Array],
    candidates: Callable[[Objective], int],
    *,
    gradients: int = 0,
    patience: int | None = None,
    swaps: int = 1,
) -> Attack:
    """A local search that is told by `(key, objective, state) -> prompts [C, T]` what to try.

    It restarts after `patience` stale steps (2T by default). Where `swaps` is 2 or more, up to `swaps - 1` random
    tokens of each proposal change as well.
    """

    def init(key, objective, prompt, margin):
        # A start without a margin is as good as none: the first hazard is better.
        return Climb(prompt, jnp.where(jnp.isnan(margin), NOT_HAZARDOUS, margin), jnp.zeros((), jnp.int32))

    def step(key, objective, state):
        propose_key, further_key, restart_key = jax.random.split(key, 3)
        allowed = jnp.asarray(objective.allowed)
        proposals = further(further_key, allowed, propose(propose_key, objective, state), swaps - 1)
        return move(
            restart_key, objective, state, proposals, patience=2 * len(allowed) if patience is None else patience
        )

    return Attack(name, init, step, gradients, candidates)
