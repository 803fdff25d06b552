"""HotFlip: the flips that the gradient likes best, scored exactly (Ebrahimi et al. 2018)."""

import functools

import jax
import jax.numpy as jnp

from testbed.attacks.climb import climber
from testbed.attacks.moves import changes, ranked
from testbed.attacks.search import Attack


@functools.cache
def hotflip(flips: int = 4, patience: int | None = None, swaps: int = 1) -> Attack:
    """Score the `flips` single swaps of lowest first-order change, over all positions; take the best if it is better.

    After a stale step come the next best flips, and so on down the list; after `patience` of them (2T by default) the
    climb restarts. With `swaps = 2`, another random token changes in half of the candidates.
    Reference: Ebrahimi et al. 2018, HotFlip: White-Box Adversarial Examples for Text Classification.
    """

    def propose(key, objective, state):
        allowed = jnp.asarray(objective.allowed)
        length, vocab = allowed.shape
        change = changes(objective.gradient(state.prompt), allowed, state.prompt)
        order = ranked(key, change.ravel())
        ranks = (state.stale * flips + jnp.arange(flips)) % jnp.maximum(allowed.sum() - length, 1)
        positions, tokens = jnp.divmod(order[ranks], vocab)
        return jax.vmap(lambda position, token: state.prompt.at[position].set(token))(positions, tokens)

    return climber("hotflip", propose, lambda objective: flips, gradients=1, patience=patience, swaps=swaps)
