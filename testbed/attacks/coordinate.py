"""Coordinate hill-climbing: try every token at a random position, keep the best."""

import functools

import jax
import jax.numpy as jnp

from testbed.attacks.climb import climber
from testbed.attacks.search import Attack


@functools.cache
def coordinate(patience: int | None = None, swaps: int = 1, tokens: int | None = None) -> Attack:
    """Score all V tokens at one random position a step; restart after `patience` stale steps (2T by default).

    With `tokens`, at most that many random ones of the V. With `swaps = 2`, another random token changes in half of
    the candidates.
    """

    def count(objective):
        vocab = objective.allowed.shape[1]
        return vocab if tokens is None else min(tokens, vocab)

    def propose(key, objective, state):
        position_key, token_key = jax.random.split(key)
        length, vocab = objective.allowed.shape
        position = jax.random.randint(position_key, (), 0, length)
        tried = jax.random.permutation(token_key, vocab)[: count(objective)] if tokens else jnp.arange(vocab)
        # A forbidden token is replaced by the current one: every candidate stays inside the input space.
        tried = jnp.where(jnp.asarray(objective.allowed)[position][tried], tried, state.prompt[position])
        return jax.vmap(lambda token: state.prompt.at[position].set(token))(tried)

    return climber("coordinate", propose, count, patience=patience, swaps=swaps)
