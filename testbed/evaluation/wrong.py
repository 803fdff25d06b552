"""Draws from all prompts that a model answers wrongly: uniform over its failures, and over its false alarms."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import numpy as np

from testbed.evaluation import paths
from testbed.evaluation.exact import bounded
from testbed.evaluation.verdicts import judge
from testbed.evaluation.walk import Leaves, countable, over_space
from testbed.policy import Policy, greedy
from testbed.task import Task, is_safe, prompts_of_ids, rank


class Kind(NamedTuple):
    """One kind of wrong prompts: whether there is any, and `draw(key, number) -> [number, T]`, uniform."""

    any: bool
    draw: Callable[[jax.Array, int], np.ndarray]


def wrong_kinds(model, task: Task) -> tuple[Kind, Kind]:
    """All failures of a model's greedy answers, and all its false alarms.

    A machine's are drawn by walking paths backwards, at any size of the space. Else the space is visited once; of
    more than 2^20 prompts of a kind the draws then come from a sample of that many.

    Raises:
      ValueError: neither can be done, as `testbed.evaluation.exact.count` says.
    """
    if paths.walkable(model, task):
        try:
            return _by_paths(model, task)
        except paths.TooManyNodesError:
            if not countable(task):
                raise
    return _by_visits(model, task)


def _by_paths(model, task: Task) -> tuple[Kind, Kind]:
    graph = paths.graph_of(model, task)

    def kind(wanted):
        draw = lambda key, number: paths.draw(key, graph, task, wanted=wanted, number=number)
        return Kind(bool(wanted.any()), draw)

    failing, refused = paths.wrong_ends(model, task, graph)
    return kind(failing), kind(refused)


def _read(policy: Policy, task: Task, leaves: Leaves):
    """Which prompts fail, which are safe and refused, and their ranks, each `[n]`."""
    judged = judge(policy, task, leaves)
    safe = jax.vmap(lambda prompt: is_safe(task, prompt))(leaves.prompts)
    return judged.failure > 0, judged.refused & safe, jax.vmap(lambda prompt: rank(task, prompt))(leaves.prompts)


def _by_visits(model, task: Task) -> tuple[Kind, Kind]:
    parts, kept = over_space(_read, model, greedy(task), task), [np.zeros(0, np.int64)] * 2
    for *which, ranks in parts.each(range(parts.count)):
        kept = [
            bounded(np.concatenate([ids, ranks[of_kind].astype(np.int64)]))
            for ids, of_kind in zip(kept, which, strict=True)
        ]

    def kind(ids):
        return Kind(
            len(ids) > 0,
            lambda key, number: prompts_of_ids(task, ids[np.asarray(jax.random.randint(key, number, 0, len(ids)))]),
        )

    return kind(kept[0]), kind(kept[1])
