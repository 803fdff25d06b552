"""Sampling: the best of many independent prompts, or the first that fails. In a small space it is a strong attack."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from testbed.attacks.combine import until_failure
from testbed.attacks.moves import anything, edit
from testbed.attacks.search import Attack, score
from testbed.objective import Objective


def _sampler(name: str, draw: Callable[[jax.Array, Objective], jax.Array], batch: int) -> Attack:
    """Score `batch` prompts a step, each drawn afresh, as the start is."""

    def init(key, objective, prompt, margin):
        return ()

    def step(key, objective, state):
        return state, score(objective, jax.vmap(draw, (0, None))(jax.random.split(key, batch), objective))

    return Attack(name, init, step, 0, lambda objective: batch, start=draw)


@functools.cache
def uniform(batch: int = 8, stops: bool = False) -> Attack:
    """Score `batch` fresh prompts a step from the objective's own distribution of hazardous prompts.

    With `stops`, an attacker keeps the first prompt that fails (`until_failure`): then its finds are all the failures
    alike. Without, they are those of which the model is surest.

    On a task whose `sample_hazard` is uniform, the calls to first failure are geometric with p = failing / hazardous.
    """
    found = _sampler("uniform", lambda key, objective: objective.start(key), batch)
    return until_failure(found) if stops else found


@functools.cache
def clean_rejection(batch: int = 8) -> Attack:
    """Score `batch` clean prompts a step: what ordinary use would stumble on.

    A clean prompt that is no hazard is paid for like any other and has the huge margin. Where the clean distribution
    leaves prompts out, no budget reaches them.
    """
    return _sampler("clean_rejection", lambda key, objective: objective.clean(key), batch)


@functools.cache
def clean_edits(batch: int = 8, edits: int = 2) -> Attack:
    """Score `batch` clean prompts a step, each with one to `edits` random tokens changed.

    The weak attacker of Ziegler et al. 2022 in small: it stays near natural text.
    """

    def draw(key, objective):
        clean_key, edit_key = jax.random.split(key)
        prompt = objective.clean(clean_key)
        return edit(edit_key, prompt, anything(jnp.asarray(objective.allowed), prompt), edits)

    return _sampler("clean_edits", draw, batch)
