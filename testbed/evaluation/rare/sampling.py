"""Plain sampling: the honest baseline, and the base of every other estimator."""

import functools
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from testbed.broken import refuse_broken
from testbed.evaluation.rare.estimate import Estimate, health, refuse_few
from testbed.objective import NOT_HAZARDOUS, Objective
from testbed.statistics import clopper_pearson

BATCH = 2048


@partial(jax.jit, static_argnames="samples")
def clean_margins(key: jax.Array, objective: Objective, samples: int) -> tuple[jax.Array, jax.Array]:
    """Fresh clean prompts `[samples, T]` and their `finite_margin`s `[samples]`: one margin each."""
    prompts = jax.vmap(objective.clean)(jax.random.split(key, samples))
    return prompts, jax.lax.map(partial(finite_margin, objective), prompts, batch_size=BATCH)


def finite_margin(objective: Objective, prompt: jax.Array) -> jax.Array:
    """The margin of a prompt `[T]`, or NaN; where an alarm is ruled out, it is as far below zero as a number goes here.

    Weights are differences of margins, and infinity less infinity is no number.
    """
    return jnp.maximum(objective.margin_or_nan(prompt), -NOT_HAZARDOUS)


@functools.cache
def naive(samples: int = 2**16) -> Callable[[jax.Array, Objective], Estimate]:
    """Count failures among `samples` clean prompts; the interval is Clopper and Pearson's.

    Unbiased and honest; it sees nothing much below 1 / samples.

    Raises:
      ValueError: `samples` is below 1.
    """
    refuse_few("samples", samples, 1)

    def estimate(key, objective):
        refuse_broken(objective.model)
        _, margins = clean_margins(key, objective, samples)
        refuse_broken(objective.model, margins)
        fails = np.asarray(margins <= 0)
        return Estimate(*clopper_pearson(int(fails.sum()), samples), *health(fails), samples * objective.forwards)

    return estimate


def conditional(key: jax.Array, objective: Objective, prompt: jax.Array) -> jax.Array:
    """`prompt` `[T]` with one token, at a random position, drawn afresh given all others (a Gibbs step).

    The clean distribution is left as it is, and the step is reversible under it, whatever the dependence between
    tokens. It costs no model call.
    """
    place_key, token_key = jax.random.split(key)
    allowed = jnp.asarray(objective.allowed)
    place = jax.random.randint(place_key, (), 0, len(prompt))
    tokens = jnp.arange(allowed.shape[1])
    candidates = jnp.where(jnp.arange(len(prompt)) == place, tokens[:, None], prompt)
    log_prob = jnp.where(allowed[place], jax.vmap(objective.task.clean_log_prob)(candidates), -jnp.inf)
    return candidates[jax.random.categorical(token_key, log_prob)]
