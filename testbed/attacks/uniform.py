"""Random search: the best of many hazardous prompts. In a small space it is already a strong attack."""

import functools

import jax

from testbed.attacks.search import Attack, Scored


@functools.cache
def uniform(batch: int = 8) -> Attack:
    """Score `batch` fresh prompts a step from the objective's own distribution of hazardous prompts.

    On a task whose `sample_hazard` is uniform, the calls to first failure are geometric with p = failing / hazardous.
    """

    def init(key, objective, prompt, margin):
        return ()

    def step(key, objective, state):
        prompts = jax.vmap(objective.start)(jax.random.split(key, batch))
        return state, Scored(prompts, jax.vmap(objective.margin)(prompts))

    return Attack("uniform", init, step, gradients=0, candidates=lambda objective: batch)
