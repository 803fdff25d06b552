"""Coordinate ascent by averaged first-order scores (ARCA; Jones et al. 2023)."""

import functools

import jax
import jax.numpy as jnp

from testbed.attacks.climb import climber
from testbed.attacks.moves import another, changes, ranked
from testbed.attacks.search import Attack


@functools.cache
def arca(averages: int = 8, top: int = 8, patience: int | None = None, swaps: int = 1) -> Attack:
    """Score the `top` tokens at one random position whose first-order change is lowest on average.

    The average is over prompts with the current token and `averages - 1` random ones at that position: the slope at
    one token says little about tokens far away. Restart after `patience` stale steps (2T by default). Unlike the
    paper's, the answer is not searched: the margin already takes the worst of them.
    Reference: Jones et al. 2023, Automatically Auditing Large Language Models via Discrete Optimization, section 3.2.
    """

    def count(objective):
        return min(top, objective.allowed.shape[1] - 1)

    def propose(key, objective, state):
        position_key, token_key, rank_key = jax.random.split(key, 3)
        allowed = jnp.asarray(objective.allowed)
        position = jax.random.randint(position_key, (), 0, len(allowed))
        row, current = allowed[position], state.prompt[position]
        tokens = jax.vmap(another, (0, None, None))(jax.random.split(token_key, averages), row, current)
        prompts = jax.vmap(lambda token: state.prompt.at[position].set(token))(tokens.at[0].set(current))
        slope = jax.vmap(objective.gradient)(prompts)[:, position].mean(axis=0)
        best = ranked(rank_key, changes(slope, row, current))[: count(objective)]
        best = jnp.where(row[best], best, current)
        return jax.vmap(lambda token: state.prompt.at[position].set(token))(best)

    return climber("arca", propose, count, gradients=averages, patience=patience, swaps=swaps)
