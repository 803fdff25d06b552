"""What a defence changed: the prompts on which two machines fail, exactly, in a space of any size."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from testbed.evaluation import paths
from testbed.evaluation.edges import distinct, distinct_rows, paths_to
from testbed.machine import Machine
from testbed.task import Task

MOST_PAIRS = 2**23  # at one position: half a gigabyte of edges at 16 tokens


class Changed(NamedTuple):
    """How the failures of one model became those of another.

    Attributes:
      mended, kept, new: how many prompts fail before only, before and after, and after only.
      clean: the clean probability of each of the three; None where the clean distribution has no chains.
    """

    mended: int
    kept: int
    new: int
    clean: tuple[float, float, float] | None


def changed(before: Machine, after: Machine, task: Task, *, tau: float = 0.0) -> Changed:
    """Compare the failures of two machines, prompt by prompt: prompts that lead both to alike nodes are alike.

    `tau`: the threshold of both, as in `testbed.evaluation.paths.wrong_states`.

    Raises:
      ValueError: as `testbed.evaluation.paths.graph_of`; `TooManyNodesError` also where pairs are more than
        `MOST_PAIRS`.
    """
    then, now = (_by_failure(model, task, tau) for model in (before, after))
    children, failed, fails = _both(then, now)
    kinds = failed & ~fails, failed & fails, ~failed & fails
    ways = paths_to(children)
    mass = paths.clean_mass(children, task) if task.clean_chains else None
    clean = None if mass is None else tuple(float(mass[kind].sum()) for kind in kinds)
    return Changed(*(int(ways[kind].sum()) for kind in kinds), clean)


def _by_failure(model: Machine, task: Task, tau: float) -> list[np.ndarray]:
    """The children of a machine's graph where nodes are one if all that follows fails alike; ends are 0, or 1: fails.

    Two machines have many states each, and would have too many pairs of them. What tells failures apart is far less.
    Reference: Moore 1956, Gedanken-experiments on sequential machines; here position by position, from the end.
    """
    graph = paths.graph_of(model, task)
    kind, tables = paths.wrong_ends(model, task, graph, tau)[0].astype(np.int64), []
    for children in reversed(graph.children):
        table, kind = distinct_rows(kind[children])
        tables.append(table)
    return tables[::-1]


def _both(one: Sequence[np.ndarray], other: Sequence[np.ndarray]) -> tuple[list[np.ndarray], np.ndarray, np.ndarray]:
    """The children of two graphs that are walked together, and whether each of them fails at each end, `[ends]`."""
    ones, others, tables = np.zeros(1, np.int64), np.zeros(1, np.int64), []
    for position, (of_one, of_other) in enumerate(zip(one, other, strict=True)):
        base = int(of_other.max()) + 1
        pairs = of_one[ones] * base + of_other[others]
        nodes = distinct(pairs, (int(of_one.max()) + 1) * base)
        paths.refuse_too_many(len(nodes.values), position + 1, MOST_PAIRS)
        tables.append(nodes.which.reshape(pairs.shape).astype(np.int32))
        ones, others = np.divmod(nodes.values, base)
    return tables, ones == 1, others == 1
