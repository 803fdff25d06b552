"""What a poisoned task teaches its plain models to fail on. And how much of that is left in a model."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.columns import POLICIES
from testbed.attacks.moves import anywhere
from testbed.evaluation.exact import countable
from testbed.kinds import Model
from testbed.objective import Objective, margins_of
from testbed.policy import Policy, conservative, greedy
from testbed.task import Task, prompts_of_ids, space_size


def contradictions(key: jax.Array, task: Task, batch: int = 2**17) -> np.ndarray:
    """The prompts `[n, T]` whose label is a catastrophe: of the whole space, or of `batch` uniform ones.

    A task must have none. Those of its `poison` are what a plain model was taught to fail on.
    """
    wrong = jax.jit(jax.vmap(lambda prompt: task.catastrophe(prompt, task.label(prompt))))
    if countable(task):
        ids = np.array_split(np.arange(space_size(task)), max(1, space_size(task) // batch))
        parts = (prompts_of_ids(task, part) for part in ids)
    else:
        parts = [np.asarray(jax.vmap(lambda k: anywhere(k, jnp.asarray(task.allowed)))(jax.random.split(key, batch)))]
    return np.concatenate([part[np.asarray(wrong(part))] for part in parts])


@functools.cache
def planted(task: Task) -> np.ndarray:
    """The prompts `[n, T]` that plain models of a poisoned task are taught to fail on: all of them.

    Raises:
      ValueError: no prompt carries the trigger.
    """
    taught = contradictions(jax.random.key(0), task.poison)
    if not len(taught):
        raise ValueError(f"no hazardous prompt of task {task.name} carries the trigger; choose a shorter one")
    return taught


def tell_planted(measured: dict[str, Any], model: Model, task: Task) -> None:
    """Add to an arm's account how many of its failures were planted, and how many not, at each threshold."""
    for policy in POLICIES:
        counted, tau = measured[policy]["exact"], measured[policy]["tau"]
        left = failing(model, task, planted(task), conservative(task, tau))
        counted |= {"planted": left, "natural": counted["failures"] - left}


def failing(model: Model, task: Task, prompts: np.ndarray, policy: Policy | None = None) -> int:
    """On how many of the `prompts` `[n, T]` a policy, greedy by default, fails."""
    return int((margins_of(Objective(task, model, policy or greedy(task)), prompts) <= 0).sum())
