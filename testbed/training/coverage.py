"""Coverage: labelled prompts that no search chose, in every batch.

It is what any defence has to beat. In a small space it does nearly all that search does, for more labels.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from testbed.attacks.moves import anywhere
from testbed.task import Task

Draw = Callable[[jax.Array, Task], jax.Array]
"""`(key, task) -> prompt [T]`."""


class Fresh(NamedTuple):
    """Which prompts are drawn, how much of a batch they are, and how many are labelled.

    Attributes:
      draw: draws a prompt; its label is the task's.
      share: of each batch, above 0 and at most 1.
      labels: how many prompts are drawn, once a run, and then replayed. With 0 each batch draws new ones.
    """

    draw: Draw
    share: float = 0.5
    labels: int = 0


def uniform(key: jax.Array, task: Task) -> jax.Array:
    """A uniformly random prompt `[T]` of the input space, hazardous or not."""
    return anywhere(key, jnp.asarray(task.allowed)).astype(jnp.int32)


def hazards(key: jax.Array, task: Task) -> jax.Array:
    """A prompt `[T]` of the task's own distribution of hazardous prompts, where attacks start too."""
    return task.sample_hazard(key)


def mixed(key: jax.Array, task: Task) -> jax.Array:
    """A prompt `[T]` of one or the other, each half of the time."""
    coin, uniform_key, hazard_key = jax.random.split(key, 3)
    return jnp.where(jax.random.bernoulli(coin), uniform(uniform_key, task), hazards(hazard_key, task))


DRAWS: dict[str, Draw] = {"uniform": uniform, "hazards": hazards, "mixed": mixed}
SAMPLED = (hazards, mixed)  # those that need a sampler of hazards


def fresh_prompts(key: jax.Array, task: Task, fresh: Fresh, number: int, *, run_key: jax.Array) -> jax.Array:
    """`number` labelled prompts `[number, T]` of one batch.

    Args:
      run_key: the same in every batch of a run. It says which prompts a fixed number of labels went to.
    """
    if fresh.labels:
        rows = jax.random.randint(key, (number,), 0, fresh.labels)
        keys = jax.vmap(lambda row: jax.random.fold_in(run_key, row))(rows)
    else:
        keys = jax.random.split(key, number)
    return jax.vmap(lambda key: fresh.draw(key, task))(keys)


def refuse_unfit(fresh: Fresh) -> None:
    """Say in one line that a share or a number of labels is none.

    Raises:
      ValueError: the share is not above 0 and at most 1, or the labels are negative.
    """
    if not 0 < fresh.share <= 1:
        raise ValueError(f"fresh_share must be above 0 and at most 1, not {fresh.share}")
    if fresh.labels < 0:
        raise ValueError(f"fresh_labels must be at least 0 (drawn anew for every batch), not {fresh.labels}")


def labels_used(fresh: Fresh, steps: int, batch: int) -> int:
    """How many prompts are labelled in `steps` batches of `batch`: each draw counts, the same prompt twice too."""
    drawn = steps * round(fresh.share * batch)
    return min(drawn, fresh.labels) if fresh.labels else drawn
