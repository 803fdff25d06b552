"""Search over relaxed prompts: Gumbel-softmax (GBDA), projected embeddings (PEZ), and gradient descent in the hull."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from testbed.attacks.search import Attack, comparable, score
from testbed.objective import NOT_HAZARDOUS

STRAY = 3


class Descent(NamedTuple):
    """What descends `[T, V]` and its optimiser's state; the best hazard so far with its margin; the steps taken, and
    those among the last ones that met no hazard."""

    variable: jax.Array
    moments: Any
    anchor: jax.Array
    margin: jax.Array
    age: jax.Array
    strayed: jax.Array


def _descent(
    name: str,
    begin: Callable,
    read: Callable,
    optimiser: optax.GradientTransformation,
    steps: int,
    points: int,
    settle: Callable = lambda variable, allowed: variable,
) -> Attack:
    """Descend for `steps` steps, or until `STRAY` of them in a row met no hazard; then from a fresh hazardous prompt.

    `begin(one_hot, allowed)` is the variable of a prompt; `read(key, variable, allowed, share done)` the relaxed
    prompts `[points, T, V]` where the slope is taken, differentiable; `settle` brings the variable back to its space.
    The most likely tokens of each relaxed prompt cost a call, and its slope a gradient: with the catastrophic answers
    to those tokens or, where they are no hazard, to the best one so far.
    """

    def start(prompt, margin, objective):
        variable = begin(jax.nn.one_hot(prompt, objective.allowed.shape[1]), jnp.asarray(objective.allowed))
        zero = jnp.zeros((), jnp.int32)
        return Descent(variable, optimiser.init(variable), prompt, margin, zero, zero)

    def init(key, objective, prompt, margin):
        return start(prompt, jnp.where(jnp.isnan(margin), NOT_HAZARDOUS, margin), objective)

    def step(key, objective, state):
        read_key, start_key = jax.random.split(key)
        allowed = jnp.asarray(objective.allowed)
        relaxed, pull = jax.vjp(lambda v: read(read_key, v, allowed, state.age / steps), state.variable)
        scored = score(objective, jnp.where(allowed, relaxed, -jnp.inf).argmax(axis=2))
        hazard = scored.margins < NOT_HAZARDOUS
        judged = jnp.where(hazard[:, None], scored.prompts, state.anchor)
        (slope,) = pull(jax.vmap(objective.soft_gradient)(relaxed, judged) / points)
        updates, moments = optimiser.update(slope, state.moments)
        variable = settle(optax.apply_updates(state.variable, updates), allowed)
        pick = comparable(scored.margins).argmin()
        better = scored.margins[pick] < state.margin
        anchor = jnp.where(better, scored.prompts[pick], state.anchor)
        margin = jnp.where(better, scored.margins[pick], state.margin)
        strayed = jnp.where(hazard.any(), 0, state.strayed + 1)
        state = Descent(variable, moments, anchor, margin, state.age + 1, strayed)
        again = start(objective.start(start_key), jnp.asarray(NOT_HAZARDOUS, margin.dtype), objective)
        keep = (state.age < steps) & (strayed < STRAY)
        return jax.tree.map(lambda old, new: jnp.where(keep, old, new), state, again), scored

    return Attack(name, init, step, gradients=points, candidates=lambda objective: points)


@functools.cache
def gbda(
    rate: float = 0.3, steps: int = 50, samples: int = 4, hot: float = 1.0, *, cold: float = 0.1, sure: float = 2.0
) -> Attack:
    """Descend on token logits through `samples` Gumbel-softmax draws a step, cooled from `hot` to `cold`.

    The logits begin at `sure` for the tokens of a hazardous prompt and 0 for others. `rate` is Adam's. Each draw's
    discrete prompt, from the same noise, is scored.
    Reference: Guo et al. 2021, Gradient-based Adversarial Attacks against Text Transformers.
    """

    def read(key, logits, allowed, done):
        noisy = logits + jax.random.gumbel(key, (samples, *logits.shape))
        return jax.nn.softmax(jnp.where(allowed, noisy, -jnp.inf) / (hot * (cold / hot) ** done))

    return _descent("gbda", lambda one_hot, allowed: sure * one_hot, read, optax.adam(rate), steps, samples)


@functools.cache
def pez(rate: float = 0.3, steps: int = 10) -> Attack:
    """Descend on a soft prompt with the slope taken at its projection, the nearest tokens; restart after `steps` steps.

    The projection passes its gradient straight through. `rate` is Adam's.
    Reference: Wen et al. 2023, Hard Prompts Made Easy, algorithm 1.
    """

    def read(key, soft, allowed, done):
        nearest = jax.nn.one_hot(jnp.where(allowed, soft, -jnp.inf).argmax(axis=1), soft.shape[1])
        return (soft + jax.lax.stop_gradient(nearest - soft))[None]

    return _descent("pez", lambda one_hot, allowed: one_hot, read, optax.adam(rate), steps, 1)


@functools.cache
def embedding_pgd(rate: float = 0.6, steps: int = 10) -> Attack:
    """Descend on a mixture of tokens at each position, and project; restart after `steps` steps. A diagnostic.

    The mixture begins half way between a hazardous prompt and all tokens alike. Steps have length `rate` (L2) and are
    projected back to the hull of the allowed tokens. That the mixture succeeds says little about real prompts: what is
    scored is its most likely tokens.
    Reference: Madry et al. 2018 for projected gradient descent; Schwinn et al. 2024 for embedding attacks.
    """

    def hull(mixture, allowed):
        inside = jax.vmap(optax.projections.projection_simplex)(jnp.where(allowed, mixture, -1e6))
        return jnp.where(allowed, inside, 0.0)

    def begin(one_hot, allowed):
        return (one_hot + allowed / allowed.sum(axis=1, keepdims=True)) / 2

    optimiser = optax.chain(optax.normalize_by_update_norm(), optax.sgd(rate))
    return _descent("embedding_pgd", begin, lambda key, v, allowed, done: v[None], optimiser, steps, 1, hull)
