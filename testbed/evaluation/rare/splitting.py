"""Adaptive multilevel splitting: a population that is let closer to failure, a quarter of it at a time."""

import functools
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from testbed.broken import refuse_broken, refuse_counted
from testbed.evaluation.rare.estimate import (
    REPLICATES,
    Estimate,
    pooled,
    refuse_few,
    refuse_without_density,
)
from testbed.evaluation.rare.sampling import clean_margins, conditional, finite_margin
from testbed.objective import Objective
from testbed.statistics import clopper_pearson

MOST_LEVELS = 120  # each divides by 4/3: enough for 1e-15


class Particles(NamedTuple):
    """N prompts `[N, T]`, their margins, attached uniforms and first ancestors `[N]`; levels passed, and NaNs met."""

    prompts: jax.Array
    margins: jax.Array
    uniforms: jax.Array
    ancestors: jax.Array
    levels: jax.Array
    broken: jax.Array


@functools.cache
def splitting(
    particles: int = 2048, kill: float = 0.25, moves: int = 10, replicates: int = REPLICATES
) -> Callable[[jax.Array, Objective], Estimate]:
    """Adaptive multilevel splitting (Cerou and Guyader 2007) on the margin.

    At each level the share `kill` of the particles with the largest margins is replaced by clones of the others, moved
    by `moves` single-token steps that stay below the level; P is the product of the shares that were kept, times the
    share that fails at the end. Discrete prompts tie, so each particle carries a uniform, and levels are of the pair
    (margin, uniform). `effective` and `largest` are about first ancestors of failing particles.

    Raises:
      ValueError: too few particles or replicates, or the task has no clean density.
    """
    refuse_few("particles", particles, 8)
    refuse_few("replicates", replicates, 2)
    killed = max(1, round(particles * kill))

    def estimate(key, objective):
        refuse_without_density(objective, "splitting")
        refuse_broken(objective.model)
        keys = jax.random.split(key, replicates)
        ends = [jax.device_get(_split(k, objective, particles, killed, moves)) for k in keys]
        margins = sum(particles + int(end.levels) * killed * moves for end in ends)
        refuse_counted(objective.model, np.array([end.broken for end in ends]), margins)
        fails = np.array([end.margins <= 0 for end in ends])
        kept = np.array([(1 - killed / particles) ** int(end.levels) for end in ends])
        weights = [
            share * np.bincount(end.ancestors[fail], minlength=particles)
            for share, end, fail in zip(kept, ends, fails, strict=True)
        ]
        # Who never reaches a failure has passed no level for certain: only the first population tells something.
        ceiling = clopper_pearson(0, particles * replicates).high
        return pooled(kept * fails.mean(axis=1), ceiling, np.array(weights), objective.forwards * margins)

    return estimate


@partial(jax.jit, static_argnames=("particles", "killed", "moves"))
def _split(key, objective: Objective, particles: int, killed: int, moves: int) -> Particles:
    clean_key, uniform_key, level_key = jax.random.split(key, 3)
    prompts, margins = clean_margins(clean_key, objective, particles)
    uniforms = jax.random.uniform(uniform_key, (particles,))

    def searching(at):
        # Once the next level would lie among failures, the share that fails is read off.
        above = (at.margins > 0).sum()
        return (above >= killed) & (at.levels < MOST_LEVELS)

    def next_level(at):
        parent_key, move_key = jax.random.split(jax.random.fold_in(level_key, at.levels))
        order = jnp.lexsort((at.uniforms, at.margins))
        stay, gone = order[:-killed], order[-killed:]
        level = at.margins[gone[0]], at.uniforms[gone[0]]
        parents = stay[jax.random.randint(parent_key, (killed,), 0, len(stay))]
        clones = [a[parents] for a in at[:3]]

        def move(clones, key):
            token_key, uniform_key = jax.random.split(key)
            prompts, margins, uniforms = clones
            moved = jax.vmap(conditional, (0, None, 0))(jax.random.split(token_key, killed), objective, prompts)
            reached = jax.lax.map(partial(finite_margin, objective), moved, batch_size=2048)
            fresh = jax.random.uniform(uniform_key, (killed,))
            below = (reached < level[0]) | ((reached == level[0]) & (fresh < level[1]))
            return [
                jnp.where(below[:, None], moved, prompts),
                jnp.where(below, reached, margins),
                jnp.where(below, fresh, uniforms),
            ], jnp.isnan(reached).sum()

        clones, broken = jax.lax.scan(move, clones, jax.random.split(move_key, moves))
        changed = [old.at[gone].set(new) for old, new in zip(at[:3], clones, strict=True)]
        ancestors = at.ancestors.at[gone].set(at.ancestors[parents])
        return Particles(*changed, ancestors, at.levels + 1, at.broken + broken.sum())

    levels, broken = jnp.zeros((), jnp.int32), jnp.isnan(margins).sum()
    start = Particles(prompts, margins, uniforms, jnp.arange(particles), levels, broken)
    return jax.lax.while_loop(searching, next_level, start)
