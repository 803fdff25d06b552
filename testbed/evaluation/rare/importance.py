"""Importance sampling: draw where failures are, and weigh by how much likelier they are there (Wu and Hilton 2024)."""

import functools
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from testbed.attacks.search import GRADIENT_FORWARDS
from testbed.broken import refuse_broken, refuse_counted
from testbed.evaluation.rare.estimate import (
    REPLICATES,
    Estimate,
    pooled,
    refuse_few,
    refuse_without_density,
)
from testbed.evaluation.rare.sampling import clean_margins, conditional, finite_margin
from testbed.objective import NOT_HAZARDOUS, Objective
from testbed.statistics import clopper_pearson

TEMPERATURES = (1.0, 2.0, 3.0, 5.0)
SMOOTHING = 0.1
DECAY = 0.9


@functools.cache
def mhis(
    base: int = 2048, chains: int = 64, steps: int = 24, burn: int = 8, *, replicates: int = REPLICATES
) -> Callable[[jax.Array, Objective], Estimate]:
    """Importance sampling by Metropolis-Hastings: chains from p(x) exp(-margin / T), cooled (MHIS, Wu and Hilton 2024).

    Differs from the paper where it is known to fail. The normaliser is no harmonic mean (of infinite variance, and
    confidently low): each temperature's is got from the next hotter one's samples, the hottest from `base` clean
    samples. And no single temperature is trusted: the value is the mean over them, the interval covers their spread.
    Proposals redraw one token given the others, which keeps p whether or not tokens are independent.

    Raises:
      ValueError: too few samples, no clean density.
    """
    refuse_few("base", base, 2)
    refuse_few("steps after burn-in", steps - burn, 1)
    refuse_few("replicates", replicates, 2)

    def estimate(key, objective):
        refuse_without_density(objective, "mhis")
        refuse_broken(objective.model)
        keys = jax.random.split(key, replicates)
        runs = [jax.device_get(_cooled(k, objective, base, chains, steps, burn)) for k in keys]
        margins = replicates * (base + len(TEMPERATURES) * chains * steps)
        refuse_counted(objective.model, np.array([broken for *_, broken in runs]), margins)
        values, calls = np.array([value for value, *_ in runs], np.float64), objective.forwards * margins
        ceiling = clopper_pearson(0, base * replicates).high
        found = pooled(values.mean(axis=1), ceiling, np.array([weights for _, weights, _ in runs]), calls)
        means = values.mean(axis=0)[values.mean(axis=0) > 0]
        return found._replace(
            low=min([found.low, *means]) if len(means) == len(TEMPERATURES) else 0.0, high=max([found.high, *means])
        )

    return estimate


@partial(jax.jit, static_argnames=("base", "chains", "steps", "burn"))
def _cooled(key, objective: Objective, base: int, chains: int, steps: int, burn: int):
    """One replicate: values `[temperatures]`, weights of failures `[temperatures, steps - burn, chains]`, and NaNs."""
    clean_key, pick_key, chain_key = jax.random.split(key, 3)
    prompts, margins = clean_margins(clean_key, objective, base)
    hazard = margins < NOT_HAZARDOUS
    temperatures = jnp.asarray(sorted(TEMPERATURES, reverse=True))
    # Not hazardous prompts have the weight zero at every temperature, as they have no failures.
    log_normaliser = _log_mean_exp(jnp.where(hazard, -margins / temperatures[0], -jnp.inf))
    start = jax.random.categorical(pick_key, jnp.where(hazard, -margins / temperatures[0], -jnp.inf), shape=(chains,))

    def one_temperature(carry, at):
        state, log_normaliser = carry
        key, temperature, colder = at

        def step(state, key):
            move_key, accept_key = jax.random.split(key)
            prompts, margins = state
            moved = jax.vmap(conditional, (0, None, 0))(jax.random.split(move_key, chains), objective, prompts)
            reached = jax.vmap(partial(finite_margin, objective))(moved)
            accept = jnp.log(jax.random.uniform(accept_key, (chains,))) < (margins - reached) / temperature
            accept &= reached < NOT_HAZARDOUS
            state = jnp.where(accept[:, None], moved, prompts), jnp.where(accept, reached, margins)
            return state, (state[1], jnp.isnan(reached).sum())

        state, (visited, broken) = jax.lax.scan(step, state, jax.random.split(key, steps))
        visited = visited[burn:]
        weights = jnp.where(visited <= 0, jnp.exp(log_normaliser + visited / temperature), 0.0)
        next_normaliser = log_normaliser + _log_mean_exp(-visited * (1 / colder - 1 / temperature))
        return (state, next_normaliser), (weights.mean(), weights, broken.sum())

    colder = jnp.append(temperatures[1:], temperatures[-1])
    keys = jax.random.split(chain_key, len(temperatures))
    state = (prompts[start], margins[start]), log_normaliser
    _, (values, weights, broken) = jax.lax.scan(one_temperature, state, (keys, temperatures, colder))
    reachable, broken = hazard.any(), broken.sum() + jnp.isnan(margins).sum()
    return jnp.where(reachable, values, 0.0), jnp.where(reachable, weights, 0.0), broken


def _log_mean_exp(x):
    return jax.nn.logsumexp(x) - jnp.log(x.size)


@functools.cache
def itgis(
    samples: int = 2048, batch: int = 256, replicates: int = REPLICATES
) -> Callable[[jax.Array, Objective], Estimate]:
    """Importance sampling from independent tokens, tilted by averaged gradients (ITGIS).

    q_i(v) is proportional to r_i(v) exp(s_i(v) / T), where s is a moving average of minus the margin's gradient and r
    the clean distribution's marginals, a tenth of them uniform so that nothing is out of reach. In the paper tokens
    are independent under p; here they need not be, and the weight p(x) / q(x) makes up for that: unbiased, but the
    more dependent the tokens are, the fewer samples carry the weight. Each replicate has one of four temperatures.

    Raises:
      ValueError: `samples` is no multiple of `batch`, too few replicates, or no clean density.
    """
    refuse_few("replicates", replicates, 2)
    if samples < batch or samples % batch:
        raise ValueError(f"samples must be a multiple of the batch {batch}, not {samples}")

    def estimate(key, objective):
        refuse_without_density(objective, "itgis")
        refuse_broken(objective.model)
        keys, temperatures = jax.random.split(key, replicates), np.resize(TEMPERATURES, replicates)
        runs = [_tilted(k, objective, t, samples, batch) for k, t in zip(keys, temperatures, strict=True)]
        refuse_counted(objective.model, np.array([broken for _, broken in runs]), samples * replicates)
        weights = np.array([weights for weights, _ in runs], np.float64)
        calls = objective.forwards * samples * replicates * (1 + GRADIENT_FORWARDS)
        return pooled(weights.mean(axis=1), 1.0, weights, calls)

    return estimate


@partial(jax.jit, static_argnames=("samples", "batch"))
def _tilted(key, objective: Objective, temperature, samples: int, batch: int) -> tuple[jax.Array, jax.Array]:
    """Weights `[samples]` of the failures among prompts drawn from the tilted proposals, zero elsewhere; and NaNs."""
    marginal_key, draw_key = jax.random.split(key)
    allowed = jnp.asarray(objective.allowed)
    clean = jax.vmap(objective.clean)(jax.random.split(marginal_key, 4096))
    marginals = jax.nn.one_hot(clean, allowed.shape[1]).mean(axis=0)
    anything = allowed / allowed.sum(axis=1, keepdims=True)
    log_base = jnp.log((1 - SMOOTHING) * marginals + SMOOTHING * anything)

    def one_batch(scores, at):
        number, key = at
        seen = jnp.where(number > 0, (1 - DECAY**number) / (1 - DECAY), 1.0)
        log_q = jax.nn.log_softmax(log_base + scores / (temperature * seen), axis=1)
        prompts = jax.random.categorical(key, log_q, shape=(batch, len(allowed)))
        margins = jax.vmap(objective.margin_or_nan)(prompts)
        drawn = jnp.take_along_axis(log_q[None], prompts[..., None], axis=2)[..., 0].sum(axis=1)
        log_weights = jax.vmap(objective.task.clean_log_prob)(prompts) - drawn
        hazards = (margins < NOT_HAZARDOUS).sum()
        slope = -jax.vmap(objective.gradient)(prompts).sum(axis=0) / jnp.maximum(hazards, 1)
        return DECAY * scores + slope, (jnp.where(margins <= 0, jnp.exp(log_weights), 0.0), jnp.isnan(margins).sum())

    batches = samples // batch
    at = jnp.arange(batches), jax.random.split(draw_key, batches)
    weights, broken = jax.lax.scan(one_batch, jnp.zeros(allowed.shape), at)[1]
    return weights.ravel(), broken.sum()
