"""A genetic algorithm: the better of two become parents, and their children replace others (Holland 1975)."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from testbed.attacks.moves import mutated
from testbed.attacks.search import Attack, score
from testbed.objective import NOT_HAZARDOUS


class Population(NamedTuple):
    """Members `[M, T]`, their margins `[M]` (of no hazard until scored), and how many prompts were scored so far."""

    prompts: jax.Array
    margins: jax.Array
    scored: jax.Array


@functools.cache
def genetic(population: int = 64, children: int = 16, elites: int = 4) -> Attack:
    """Score `children` a step: tournaments of two, one-point crossover, mutation of each token with probability 1/T.

    The first `population` prompts are fresh hazardous ones. From then on children replace random members other than
    the `elites` best: a steady state whose generations are spread over several steps, so that small budgets fit. A
    child that is no hazard replaces nobody.
    Reference: Holland 1975, Adaptation in Natural and Artificial Systems; Syswerda 1991 for the steady state.

    Raises:
      ValueError: there are no children, or more than members that are no elites.
    """
    if elites < 0 or not 1 <= children <= population - elites:
        raise ValueError(
            f"genetic children must be from 1 to population - elites, {population} - {elites}, not {children}"
        )

    def init(key, objective, prompt, margin):
        founders = jax.vmap(objective.start)(jax.random.split(key, population))
        return Population(founders, jnp.full(population, NOT_HAZARDOUS), jnp.zeros((), jnp.int32))

    def breed(key, allowed, state):
        parent_key, cut_key, mutation_key = jax.random.split(key, 3)
        rivals = jax.random.randint(parent_key, (2, 2), 0, population)
        winners = jnp.take_along_axis(rivals, state.margins[rivals].argmin(axis=1)[:, None], axis=1)[:, 0]
        mother, father = state.prompts[winners]
        cut = jax.random.randint(cut_key, (), 1, len(mother))
        child = jnp.where(jnp.arange(len(mother)) < cut, mother, father)
        return mutated(mutation_key, allowed, child)

    def step(key, objective, state):
        breed_key, slot_key = jax.random.split(key)
        founding = state.scored < population
        _, best = jax.lax.top_k(-state.margins, elites)
        _, mortal = jax.lax.top_k(jax.random.uniform(slot_key, (population,)).at[best].set(-1), children)
        slots = jnp.where(founding, (state.scored + jnp.arange(children)) % population, mortal)
        breed_keys = jax.random.split(breed_key, children)
        bred = jax.vmap(breed, (0, None, None))(breed_keys, jnp.asarray(objective.allowed), state)
        scored = score(objective, jnp.where(founding, state.prompts[slots], bred))
        hazard = scored.margins < NOT_HAZARDOUS  # false for NaN, too
        prompts = jnp.where(hazard[:, None], scored.prompts, state.prompts[slots])
        margins = jnp.where(hazard, scored.margins, state.margins[slots])
        return Population(
            state.prompts.at[slots].set(prompts), state.margins.at[slots].set(margins), state.scored + children
        ), scored

    return Attack("genetic", init, step, gradients=0, candidates=lambda objective: children)
