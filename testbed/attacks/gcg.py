"""Greedy coordinate gradient: the gradient proposes swaps, exact scores choose among them (Zou et al. 2023)."""

import functools

import jax
import jax.numpy as jnp

from testbed.attacks.climb import climber
from testbed.attacks.moves import changes, edit, ranked
from testbed.attacks.search import Attack


@functools.cache
def gcg(top: int = 6, candidates: int = 16, patience: int = 15, swaps: int = 2) -> Attack:
    """Score random swaps among the `top` tokens a position whose first-order change of the margin is lowest.

    Each of the `candidates` swaps one to `swaps` tokens, at random. A climb restarts from a fresh hazardous prompt
    after `patience` stale steps: gradient search from one start is weak.
    Reference: Zou et al. 2023, Universal and Transferable Adversarial Attacks on Aligned Language Models, algorithm 1.
    """

    def propose(key, objective, state):
        rank_key, swap_key = jax.random.split(key)
        allowed = jnp.asarray(objective.allowed)
        change = changes(objective.gradient(state.prompt), allowed, state.prompt)
        best = ranked(rank_key, change)[:, : min(top, allowed.shape[1] - 1)]
        # Where nothing else is allowed, the current token comes first.
        choices = jnp.clip(allowed.sum(axis=1) - 1, 1, best.shape[1])

        def promising(key, position):
            return best[position, jax.random.randint(key, (), 0, choices[position])]

        keys = jax.random.split(swap_key, candidates)
        return jax.vmap(lambda key: edit(key, state.prompt, promising, swaps))(keys)

    return climber("gcg", propose, lambda objective: candidates, gradients=1, patience=patience)
