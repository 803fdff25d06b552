"""Coordinate hill-climbing: try every token at a random position, keep the best."""

import functools

import jax
import jax.numpy as jnp

from testbed.attacks.climb import begin, move
from testbed.attacks.search import Attack


@functools.cache
def coordinate(patience: int | None = None) -> Attack:
    """Score all V tokens at one random position a step; restart after `patience` stale steps (2T by default)."""

    def init(key, objective, prompt, margin):
        return begin(prompt, margin)

    def step(key, objective, state):
        position_key, restart_key = jax.random.split(key)
        length, vocab = objective.allowed.shape
        position = jax.random.randint(position_key, (), 0, length)
        # A forbidden token is replaced by the current one: every candidate stays inside the input space.
        tokens = jnp.where(jnp.asarray(objective.allowed)[position], jnp.arange(vocab), state.prompt[position])
        candidates = jax.vmap(lambda token: state.prompt.at[position].set(token))(tokens)
        return move(restart_key, objective, state, candidates, 2 * length if patience is None else patience)

    return Attack("coordinate", init, step, gradients=0, candidates=lambda objective: objective.allowed.shape[1])
