"""The shape of a failure set: how far from clean prompts it lies, and how many separate tactics it holds."""

import functools
from collections import Counter
from typing import NamedTuple

import jax
import numpy as np
from scipy import sparse
from scipy.sparse import csgraph

from testbed.task import Task, prompts_of_ids, space_size

BATCH = 2**18


class Shape(NamedTuple):
    """How a set of failing prompts lies in the input space.

    Attributes:
      failures: how many prompts are described.
      clusters: connected components, two prompts being neighbours if they differ in one token: distinct tactics.
      largest: failures in the largest cluster.
      distances: failures by Hamming distance to the nearest typical clean prompt, one that is at least as likely under
        the clean distribution as under the uniform one; None where the clean distribution has no closed form.
    """

    failures: int
    clusters: int
    largest: int
    distances: dict[int, int] | None


def shape(task: Task, ids: np.ndarray) -> Shape:
    """Describe the failing prompts of ranks `ids` `[F]` (`exact.Count.ids`; a sample of them has more clusters)."""
    sizes = np.bincount(clusters(task, ids)) if len(ids) else np.zeros(0, int)
    distances = None
    if task.clean_log_prob is not None:
        distances = dict(sorted(Counter(distance_to_clean(task)[ids].tolist()).items()))
    return Shape(len(ids), len(sizes), int(sizes.max(initial=0)), distances)


def clusters(task: Task, ids: np.ndarray) -> np.ndarray:
    """The number of the cluster `[F]` that each of the prompts of ranks `ids` `[F]` belongs to."""
    ids, edges = np.asarray(ids, np.int64), []
    below = space_size(task)
    for branches in task.allowed.sum(axis=1):
        above, below = below, below // int(branches)
        line = ids - ids % above + ids % below  # the prompt with its first allowed token at this position
        order = np.argsort(line, kind="stable")
        same = line[order][1:] == line[order][:-1]
        edges.append(np.stack([order[:-1][same], order[1:][same]]))  # a chain joins all that share a line
    row, column = np.concatenate(edges, axis=1)
    graph = sparse.coo_array((np.ones(len(row), bool), (row, column)), shape=(len(ids), len(ids)))
    return csgraph.connected_components(graph, directed=False)[1]


@functools.lru_cache(maxsize=1)  # a byte a prompt, and the same for every model of a task
def distance_to_clean(task: Task) -> np.ndarray:
    """Hamming distance of every prompt of the input space to the nearest typical clean prompt, uint8 `[prompts]`.

    Exact, in T passes: what one more free position brings nearer is the minimum over the tokens of that position.
    If no prompt is typical, all are at distance 255.
    """
    typical = jax.jit(jax.vmap(lambda prompt: task.clean_log_prob(prompt) >= -np.log(space_size(task)) - 1e-4))
    parts = np.array_split(np.arange(space_size(task)), -(-space_size(task) // BATCH))
    near = np.concatenate([np.where(typical(prompts_of_ids(task, part)), 0, 255).astype(np.uint8) for part in parts])
    near = near.reshape(task.allowed.sum(axis=1))
    for axis in range(near.ndim):
        nearest = near.min(axis=axis, keepdims=True)
        np.minimum(near, nearest + (nearest < 255), out=near)
    return near.ravel()
