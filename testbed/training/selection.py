"""Selection: which of an attack's finds enter the pool, and which are replayed.

An `Order` ranks the candidates, first choice first; the pool takes as many as there is room for. `ORDERS` and `REPLAYS`
are the tables: name -> function.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from testbed.task import Task


class Candidates(NamedTuple):
    """What an attack found: prompts `[C, T]`, margins `[C]`, and how bad a failure on each would be `[C]`."""

    prompts: jax.Array
    margins: jax.Array
    egregiousness: jax.Array


Order = Callable[[jax.Array, Candidates, jax.Array, jax.Array], jax.Array]
"""`(key, candidates, pool [F, T], held [F]) -> order [C]`; `held` says which places of the pool are taken."""

Replay = Callable[[jax.Array, jax.Array], jax.Array]
"""`(place [F], first) -> bool [F]`: which places of the pool are drawn, if the newest round began at `first`."""


def potential(task: Task, prompt: jax.Array) -> jax.Array:
    """The largest egregiousness of a catastrophic answer to a prompt `[T]`; 0 if there is none."""
    answers, valid = task.catastrophic_answers(prompt)
    return jnp.where(valid, jax.vmap(task.egregiousness, (None, 0))(prompt, answers), 0.0).max()


@partial(jax.jit, static_argnames="task")
def potentials(task: Task, prompts: jax.Array) -> jax.Array:
    """The same of many prompts `[n, T]`: `[n]`."""
    return jax.vmap(partial(potential, task))(prompts)


def _sorted(key: jax.Array, *scores: jax.Array) -> jax.Array:
    """Indices that sort by the first score, lowest first, then by the next; ties in random order."""
    return jnp.lexsort((jax.random.uniform(key, scores[0].shape), *reversed(scores)))


def anyone(key, candidates, pool, held):
    """No preference: a random order."""
    return _sorted(key, jnp.zeros_like(candidates.margins))


def worst(key, candidates, pool, held):
    """Lowest margin first: the failures of which the model is surest."""
    return _sorted(key, candidates.margins)


def borderline(key, candidates, pool, held):
    """Failures that are barely failures first; then what barely is none."""
    return _sorted(key, candidates.margins > 0, jnp.abs(candidates.margins))


def egregious(key, candidates, pool, held):
    """The most egregious failures first; then the most egregious of the rest."""
    return _sorted(key, candidates.margins > 0, -candidates.egregiousness)


def diverse(key, candidates, pool, held):
    """Each next one farthest, in tokens, from the pool and from those before it: the greedy k-centre rule.

    Reference: Gonzalez 1985, Clustering to minimize the maximum intercluster distance.
    """
    prompts = candidates.prompts
    ties = jax.random.uniform(key, candidates.margins.shape)  # below one token
    far = _distances(prompts, pool, held).min(axis=1, initial=prompts.shape[1])

    def choose(left, _):
        pick = left.argmax()
        nearer = jnp.minimum(left, (prompts != prompts[pick]).sum(axis=1) + ties)
        return jnp.where(left < 0, left, nearer).at[pick].set(-1.0), pick

    return jax.lax.scan(choose, far + ties, length=len(prompts))[1]


def clustered(key, candidates, pool, held):
    """One candidate, picked at random, and those that differ from it in the fewest tokens: one tactic a unit."""
    anchor_key, tie_key = jax.random.split(key)
    anchor = candidates.prompts[jax.random.randint(anchor_key, (), 0, len(candidates.prompts))]
    return _sorted(tie_key, (candidates.prompts != anchor).sum(axis=1))


def mixed(key, candidates, pool, held):
    """The worst, the borderline and the most egregious in turn, each once."""
    keys = jax.random.split(key, 4)
    orders = [order(k, candidates, pool, held) for order, k in zip((worst, borderline, egregious), keys, strict=False)]
    return _sorted(keys[3], jnp.stack([jnp.argsort(order) for order in orders]).min(axis=0))


def _distances(prompts, pool, held):
    """Differing tokens `[C, F]`; where a place is not held, more than there are."""
    differing = (prompts[:, None] != pool).sum(axis=2)
    return jnp.where(held, differing, prompts.shape[1])


ORDERS: dict[str, Order] = {
    "anyone": anyone,
    "worst": worst,
    "borderline": borderline,
    "egregious": egregious,
    "mixed": mixed,
    "diverse": diverse,
    "clustered": clustered,
}


def evenly(place, first):
    """Every find of the pool alike: early finds are seen more often, since they are there longer."""
    return jnp.ones_like(place, bool)


def newest(place, first):
    """The newest round's finds only: each find is then seen as often as if there were one round."""
    return place >= first


REPLAYS: dict[str, Replay] = {"evenly": evenly, "newest": newest}
