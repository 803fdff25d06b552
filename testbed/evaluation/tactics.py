"""Tactics: how many different ways to fail a set of failing prompts holds.

Connected components don't tell: all failures of a plain model are often one. So a tactic is a ball of a greedy cover.
"""

import numpy as np

from testbed.task import Task, prompts_of_ids

RADIUS = 2
MOST = 4096  # the cover holds a table of all pairs


def cover(prompts: np.ndarray, radius: int = RADIUS) -> np.ndarray:
    """Centres `[m, T]` of balls that cover the prompts `[n, T]`: each in turn covers most of what is left.

    Two prompts are near if they differ in at most `radius` tokens. Of equals the first is taken. Reference: the greedy
    set cover (Chvatal 1979), whose number of balls is within a factor of ln n + 1 of the least.

    Raises:
      ValueError: there are more than `MOST` prompts; cover a sample of them.
    """
    if len(prompts) > MOST:
        raise ValueError(f"{len(prompts):,} prompts are more than the {MOST:,} that can be covered; give a sample")
    near = np.stack([distances(prompt, prompts) <= radius for prompt in prompts]) if len(prompts) else np.zeros((0, 0))
    left, centres = np.ones(len(prompts), bool), []
    gains = near.sum(axis=1)
    while left.any():
        best = int(gains.argmax())
        newly = near[best] & left
        gains = gains - near[:, newly].sum(axis=1)
        left &= ~newly
        centres.append(best)
    return prompts[centres]


def distances(prompt: np.ndarray, prompts: np.ndarray) -> np.ndarray:
    """How many tokens of each prompt `[n, T]` differ from those of `prompt` `[T]`."""
    return (prompts != np.asarray(prompt)).sum(axis=1)


def tactic(prompt: np.ndarray, centres: np.ndarray, radius: int = RADIUS) -> int | None:
    """The first of the balls that a prompt `[T]` lies in; None if it lies in none."""
    inside = distances(prompt, centres) <= radius
    return int(inside.argmax()) if inside.any() else None


def of_failures(task: Task, ids: np.ndarray) -> tuple[np.ndarray, bool]:
    """Centres `[m, T]` of the tactics among the failures of ranks `ids`, and whether all of them were covered.

    Of more than `MOST` failures every so many-th is covered.
    """
    every = -(-len(ids) // MOST) or 1
    return cover(prompts_of_ids(task, ids[::every])), every == 1
