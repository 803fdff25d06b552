"""Prompts of every length: whether a machine fails on any, by following states until none is new."""

from typing import NamedTuple

import numpy as np

from testbed.evaluation.paths import (
    first_state,
    refuse_too_many,
    refuse_unwalkable,
    stepper,
    walkable,
    wrong_states,
)
from testbed.machine import Machine
from testbed.task import Task


def has_other_lengths(model, task: Task) -> bool:
    """Whether prompts of other lengths mean something to a model and to a rule, and can be followed."""
    known = walkable(model, task) and not model.config.positional
    return known and task.checker.any_length and bool(task.allowed.all())


class Closure(NamedTuple):
    """Whether a machine is safe on prompts of every length, and refuses none that is safe.

    Attributes:
      nodes: the pairs of states that prompts of any length lead to.
      failing: the shortest prompt that fails; None if there is none.
      refused: the shortest safe prompt that is refused; None if there is none.
    """

    nodes: int
    failing: list[int] | None
    refused: list[int] | None

    @property
    def right(self) -> bool:
        """Whether no prompt of any length fails, or is refused without need."""
        return self.failing is None and self.refused is None


def closure(model: Machine, task: Task, tau: float = 0.0) -> Closure:
    """Follow all prompts, of whatever length from one token, until no new pair of states turns up.

    `tau` as in `testbed.evaluation.paths.wrong_states`.

    Raises:
      ValueError: as `testbed.evaluation.paths.graph_of`; or the machine or the rule depends on positions, so that
        other lengths mean nothing.
    """
    refuse_unwalkable(model, task)
    if not has_other_lengths(model, task):
        raise ValueError(f"task {task.name} or its machine depends on positions: there are no other lengths to judge")
    step, follow, vocab = stepper(model), task.checker.follow, task.vocab
    # For each node reached so far its parent and token, in order of length. The empty prompt is no node.
    reached, parents, tokens = np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.int64)
    front, of_front = first_state(model).astype(np.int64) * len(follow), np.array([-1])
    while len(front):
        machine, checker = np.divmod(front, len(follow))
        pairs = step(0, machine).astype(np.int64) * len(follow) + follow[checker]
        nodes, edges = np.unique(pairs, return_index=True)
        new = ~np.isin(nodes, reached)
        front, edges = nodes[new], edges[new]
        parents = np.concatenate([parents, of_front[edges // vocab]])
        tokens = np.concatenate([tokens, edges % vocab])
        of_front = np.arange(len(reached), len(reached) + len(front))
        reached = np.concatenate([reached, front])
        refuse_too_many(len(reached), "any number of")

    failing, refused = wrong_states(model, task, *np.divmod(reached, len(follow)), tau=tau)

    def shortest(wanted):
        if not wanted.any():
            return None
        node, prompt = int(wanted.argmax()), []
        while node >= 0:
            prompt.append(int(tokens[node]))
            node = int(parents[node])
        return prompt[::-1]

    return Closure(len(reached), shortest(failing), shortest(refused))
