"""Beam search: rewrite a prompt from left to right, keeping the best few versions (Lowerre 1976)."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from testbed.attacks.moves import ranked
from testbed.attacks.search import Attack, comparable, score


class Beam(NamedTuple):
    """Versions `[W, T]` and the position that is rewritten next."""

    prompts: jax.Array
    position: jax.Array


@functools.cache
def beam(width: int = 8, continuations: int = 8) -> Attack:
    """Score `continuations` tokens at the next position of each of `width` prompts, and keep the `width` best.

    The current token is always one of them, so nothing kept is worse than what it came from. The first beam is the
    start and fresh hazardous prompts; when the last position is done, all are fresh.
    """

    def count(objective):
        return min(continuations, objective.allowed.shape[1])

    def fresh(key, objective):
        return jax.vmap(objective.start)(jax.random.split(key, width))

    def init(key, objective, prompt, margin):
        return Beam(fresh(key, objective).at[0].set(prompt), jnp.zeros((), jnp.int32))

    def step(key, objective, state):
        token_key, rank_key, start_key = jax.random.split(key, 3)
        allowed = jnp.asarray(objective.allowed)
        row = allowed[state.position]

        def rewrite(key, prompt):
            current = prompt[state.position]
            tokens = ranked(key, jnp.where(row, 1, 2).at[current].set(0))[: count(objective)]
            tokens = jnp.where(row[tokens], tokens, current)
            return jax.vmap(lambda token: prompt.at[state.position].set(token))(tokens)

        versions = jax.vmap(rewrite)(jax.random.split(token_key, width), state.prompts)
        scored = score(objective, versions.reshape(-1, len(allowed)))
        best = scored.prompts[ranked(rank_key, comparable(scored.margins))[:width]]
        position = (state.position + 1) % len(allowed)
        return Beam(jnp.where(position == 0, fresh(start_key, objective), best), position), scored

    return Attack("beam", init, step, gradients=0, candidates=lambda objective: width * count(objective))
