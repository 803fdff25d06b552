"""What a defence changed: the prompts on which two machines fail, exactly, in a space of any size."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from testbed.evaluation import paths
from testbed.evaluation.edges import distinct_rows, joined, paths_to
from testbed.machine import Machine
from testbed.task import Task

MOST_PAIRS = 2**23  # at one position: half a gigabyte of edges at 16 tokens


class Changed(NamedTuple):
    """How the failures of one model became those of another: before only, before and after, and after only.

    Each is a number of prompts, or the probability of a clean prompt.
    """

    mended: int | float
    kept: int | float
    new: int | float


def changed(before: Machine, after: Machine, task: Task, *, tau: float = 0.0) -> Changed:
    """Compare the failures of two machines, prompt by prompt: prompts that lead both to alike nodes are alike.

    `tau`: the threshold of both, as in `testbed.evaluation.paths.wrong_states`.

    Raises:
      ValueError: as `testbed.evaluation.paths.graph_of`; `TooManyNodesError` also where pairs are more than
        `MOST_PAIRS`.
    """
    ways = paths_to(_both(*(_by_failure(model, task, tau) for model in (before, after))))
    _, new, mended, kept = [*ways, 0, 0, 0][:4]  # of the last kinds there may be none
    return Changed(mended, kept, new)


def clean_change(before: Machine, after: Machine, task: Task, *, tau: float = 0.0) -> Changed:
    """As `changed`, by the probability of clean prompts. Pairs have no limit but memory.

    Raises:
      ValueError: the task has no `clean_chains`; and as `testbed.evaluation.paths.graph_of`.
    """
    if not task.clean_chains:
        raise ValueError(f"task {task.name} at these sizes has no clean chains: no clean paths to weigh")
    walks, mass_of = [_by_failure(model, task, tau) for model in (before, after)], np.zeros(4)
    for (then, now), mass in paths.clean_ends(task, *walks):
        mass_of += np.bincount(2 * then + now, mass, 4)
    _, new, mended, kept = mass_of.tolist()
    return Changed(mended, kept, new)


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


def _both(one: Sequence[np.ndarray], other: Sequence[np.ndarray]) -> Iterator[np.ndarray]:
    """The children of two graphs that are walked together, a table at a time; ends are twice one's and the other's."""
    *inner, (last_of_one, last_of_other) = zip(one, other, strict=True)
    ones = others = np.zeros(1, np.int64)
    for position, tables in enumerate(inner):
        (ones, others), which = joined(tables, (ones, others))
        paths.refuse_too_many(len(ones), position + 1, MOST_PAIRS)
        yield np.stack([which(token) for token in range(tables[0].shape[1])], axis=1, dtype=np.int32)
    yield 2 * last_of_one[ones] + last_of_other[others]
