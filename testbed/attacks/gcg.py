"""Greedy coordinate gradient: the gradient proposes swaps, exact scores choose among them (Zou et al. 2023)."""

import functools

import jax
import jax.numpy as jnp

from testbed.attacks.climb import begin, move
from testbed.attacks.search import Attack


@functools.cache
def gcg(top: int = 6, candidates: int = 16, patience: int = 15) -> Attack:
    """Score random swaps among the `top` tokens a position whose first-order change of the margin is lowest.

    Each of the `candidates` swaps one token or two, at random. A climb restarts from a fresh hazardous prompt after
    `patience` stale steps: gradient search from one start is weak.
    Reference: Zou et al. 2023, Universal and Transferable Adversarial Attacks on Aligned Language Models, algorithm 1.
    """

    def init(key, objective, prompt, margin):
        return begin(prompt, margin)

    def step(key, objective, state):
        swap_key, restart_key, tie_key = jax.random.split(key, 3)
        allowed = jnp.asarray(objective.allowed)
        length, vocab = allowed.shape
        gradient = jnp.where(allowed, objective.gradient(state.prompt), jnp.inf)
        # The current token is no swap: it goes last, to be taken only where nothing else is allowed.
        gradient = gradient.at[jnp.arange(length), state.prompt].set(jnp.finfo(gradient.dtype).max)
        # Ties are broken at random: where the gradient is zero, the search is random and not blind to some tokens.
        best = jnp.lexsort((jax.random.uniform(tie_key, gradient.shape), gradient))[:, : min(top, vocab - 1)]
        choices = jnp.minimum(allowed.sum(axis=1) - 1, best.shape[1])

        def propose(key):
            first_key, second_key, both_key = jax.random.split(key, 3)
            prompt = swap(first_key, state.prompt)
            return jnp.where(jax.random.bernoulli(both_key), swap(second_key, prompt), prompt)

        def swap(key, prompt):
            position_key, rank_key = jax.random.split(key)
            position = jax.random.randint(position_key, (), 0, length)
            rank = jax.random.randint(rank_key, (), 0, jnp.maximum(choices[position], 1))
            return prompt.at[position].set(best[position, rank])

        proposals = jax.vmap(propose)(jax.random.split(swap_key, candidates))
        return move(restart_key, objective, state, proposals, patience)

    return Attack("gcg", init, step, gradients=1, candidates=lambda objective: candidates)
