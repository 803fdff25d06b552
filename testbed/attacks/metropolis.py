"""Metropolis chains over hazardous prompts, at one temperature or cooled (Metropolis et al. 1953)."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from testbed.attacks.moves import anything, edit
from testbed.attacks.search import Attack, score
from testbed.objective import NOT_HAZARDOUS


class Chains(NamedTuple):
    """Where C chains stand, prompts `[C, T]` with margins `[C]`, and the number of steps since they began."""

    prompts: jax.Array
    margins: jax.Array
    age: jax.Array


def _metropolis(name: str, temperature: Callable, steps: int | None, chains: int, swaps: int) -> Attack:
    """`chains` independent chains, one proposal each a step; all begin afresh after `steps` steps.

    A chain that stands on no scored hazard proposes a fresh hazardous prompt, so that beginning costs no extra call.
    """

    def init(key, objective, prompt, margin):
        margins = jnp.full(chains, NOT_HAZARDOUS).at[0].set(jnp.where(jnp.isnan(margin), NOT_HAZARDOUS, margin))
        return Chains(jnp.tile(prompt, (chains, 1)), margins, jnp.zeros((), jnp.int32))

    def step(key, objective, state):
        edit_key, start_key, accept_key = jax.random.split(key, 3)
        allowed = jnp.asarray(objective.allowed)
        age = state.age if steps is None else state.age % steps
        begins = (state.age > 0) & (age == 0) & (steps is not None)
        margins = jnp.where(begins, NOT_HAZARDOUS, state.margins)
        edited = jax.vmap(lambda key, prompt: edit(key, prompt, anything(allowed, prompt), swaps))(
            jax.random.split(edit_key, chains), state.prompts
        )
        fresh = jax.vmap(objective.start)(jax.random.split(start_key, chains))
        scored = score(objective, jnp.where(margins[:, None] >= NOT_HAZARDOUS, fresh, edited))
        chance = jnp.exp((margins - scored.margins) / temperature(age))
        # Out of the hazard there is no probability, nor where the margin is NaN.
        accept = (scored.margins < NOT_HAZARDOUS) & (jax.random.uniform(accept_key, (chains,)) < chance)
        prompts = jnp.where(accept[:, None], scored.prompts, state.prompts)
        return Chains(prompts, jnp.where(accept, scored.margins, margins), state.age + 1), scored

    return Attack(name, init, step, gradients=0, candidates=lambda objective: chains)


@functools.cache
def mcmc(temperature: float = 1.0, chains: int = 8, swaps: int = 2) -> Attack:
    """Sample hazardous prompts with probability proportional to exp(-margin / temperature), by random edits.

    Each of `chains` independent chains proposes to change one to `swaps` tokens. Proposals are symmetric, so the rule
    is Metropolis's: accept with probability min(1, exp((old - new) / temperature)).
    """
    return _metropolis("mcmc", lambda age: temperature, None, chains, swaps)


@functools.cache
def annealing(hot: float = 3.0, cold: float = 0.2, steps: int = 40, chains: int = 8, *, swaps: int = 2) -> Attack:
    """Metropolis chains cooled from `hot` to `cold` in `steps` steps, geometrically, then begun afresh.

    Reference: Kirkpatrick et al. 1983, Optimization by Simulated Annealing.
    """
    return _metropolis("annealing", lambda age: hot * (cold / hot) ** (age / max(steps - 1, 1)), steps, chains, swaps)
