"""What a defence changed: the prompts on which two machines fail, exactly, in a space of any size."""

from typing import NamedTuple

import numpy as np

from testbed.evaluation import paths
from testbed.machine import Machine
from testbed.task import Task


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
    """Compare the failures of two machines, prompt by prompt: prompts that lead both to the same states are alike.

    `tau`: the threshold of both, as in `testbed.evaluation.paths.wrong_states`.

    Raises:
      ValueError: as `testbed.evaluation.paths.graph_of`; together they may have too many states.
    """
    graph = paths.graph_of_both(before, after, task)
    then, now = np.divmod(graph.machine, 2**before.config.bits)[::-1]
    failed, fails = (
        paths.wrong_states(model, task, states, graph.checker, tau=tau)[0]
        for model, states in ((before, then), (after, now))
    )
    kinds = failed & ~fails, failed & fails, ~failed & fails
    ways = paths.ways_to(graph)
    mass = paths.clean_mass(graph, task) if task.clean_chains else None
    clean = None if mass is None else tuple(float(mass[kind].sum()) for kind in kinds)
    return Changed(*(int(ways[kind].sum()) for kind in kinds), clean)
