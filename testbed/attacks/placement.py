"""The same attack on a smaller or better known world: edits in some places only, and starts from a pool."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from testbed.attacks.search import Attack
from testbed.objective import NOT_HAZARDOUS


class View(NamedTuple):
    """An objective as an attack sees it, some of it exchanged. It makes the calls of the real one and no others."""

    margin: Callable
    gradient: Callable
    soft_gradient: Callable
    start: Callable
    clean: Callable
    allowed: Any
    forwards: int


def view(objective, **changes) -> View:
    """`objective` with some of its attributes exchanged."""
    return View(**{name: getattr(objective, name) for name in View._fields} | changes)


@functools.cache
def placed(attack: Attack, prefix: int = 0, suffix: int = 0, edits: int | None = None) -> Attack:
    """`attack` where only the first `prefix` and last `suffix` tokens may change (0 and 0: all), at most `edits`.

    Changes are counted against the attacker's start. What the attack asks to be scored is first brought into the
    placement: other positions get the start's token back, and so do all changes but the first `edits`, in an order of
    positions drawn once for each attacker. Prompts are reported as scored, so every one obeys, and a step costs
    exactly what a step of `attack` costs. Fresh hazardous prompts are brought in alike, and may stop being hazards.

    Raises:
      ValueError: a number is negative.
    """
    if min(prefix, suffix, edits or 0) < 0:
        raise ValueError(f"prefix {prefix}, suffix {suffix} and edits {edits} must not be negative")

    def inside(objective, origin, order):
        length = len(origin)
        place = jnp.arange(length)
        free = (place < prefix) | (place >= length - suffix) | (prefix + suffix == 0)

        def bring(prompt):
            changed = free & (prompt != origin)
            if edits is not None:
                earlier = (changed & (order < order[:, None])).sum(axis=1)
                changed &= earlier < edits
            return jnp.where(changed, prompt, origin)

        fixed = jnp.arange(objective.allowed.shape[1]) == origin[:, None]
        return bring, view(
            objective,
            margin=lambda prompt: objective.margin(bring(prompt)),
            gradient=lambda prompt: objective.gradient(bring(prompt)),
            soft_gradient=lambda soft, prompt: objective.soft_gradient(soft, bring(prompt)),
            start=lambda key: bring(objective.start(key)),
            clean=lambda key: bring(objective.clean(key)),
            allowed=jnp.where(free[:, None], jnp.asarray(objective.allowed), fixed),
        )

    def init(key, objective, prompt, margin):
        order_key, init_key = jax.random.split(key)
        order = jax.random.permutation(order_key, len(prompt))
        return prompt, order, attack.init(init_key, inside(objective, prompt, order)[1], prompt, margin)

    def step(key, objective, state):
        origin, order, inner = state
        bring, seen = inside(objective, origin, order)
        inner, scored = attack.step(key, seen, inner)
        return (origin, order, inner), scored._replace(prompts=jax.vmap(bring)(scored.prompts))

    return attack._replace(name=f"placed({attack.name})", init=init, step=step)


def warm_start(attack: Attack, pool: np.ndarray) -> Attack:
    """`attack` whose start, and every restart, is a random prompt of `pool` `[n, T]`: what was found before.

    The pool's prompts must lie inside the input space. The one that begins is not scored, so a step costs exactly what
    a step of `attack` costs; most attacks score it, or a neighbour, first. A new pool compiles a new search.

    Raises:
      ValueError: the pool is empty or no `[n, T]` array.
    """
    if np.ndim(pool) != 2 or not len(pool):
        raise ValueError(f"a pool must be prompts [n, T], at least one, not shape {np.shape(pool)}")
    return _warm_start(attack, tuple(map(tuple, np.asarray(pool).tolist())))


@functools.cache
def _warm_start(attack: Attack, pool: tuple[tuple[int, ...], ...]) -> Attack:
    prompts = np.array(pool, np.int32)

    def draw(key):
        return jnp.asarray(prompts)[jax.random.randint(key, (), 0, len(prompts))]

    def init(key, objective, prompt, margin):
        draw_key, init_key = jax.random.split(key)
        return attack.init(init_key, view(objective, start=draw), draw(draw_key), jnp.asarray(NOT_HAZARDOUS))

    def step(key, objective, state):
        return attack.step(key, view(objective, start=draw), state)

    return attack._replace(
        name=f"warm_start({attack.name})", init=init, step=step, start=lambda key, objective: draw(key)
    )
