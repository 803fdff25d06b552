"""The oracle: training on prompts drawn from all failures, and from all false alarms, of the current model.

It is an upper limit. No real attacker knows the failures; a machine's are known by their paths
(`testbed.evaluation.paths`), whatever the size of the space. False alarms belong to it: a model that learns from
failures alone refuses most safe prompts.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from testbed.evaluation.paths import draw, graph_of, wrong_ends
from testbed.machine import Machine
from testbed.task import Task
from testbed.training.defence import USUAL, Lesson
from testbed.training.rounds import History, State, begin, refuse_nan, train_unit
from testbed.training.schedule import Schedule, Unit, units


def wrong_prompts(key: jax.Array, model: Machine, task: Task, number: int) -> tuple[np.ndarray, int]:
    """`number` prompts `[number, T]` that the model answers wrongly, and how many of them fail.

    Half are uniform over all failures, half over all false alarms. Where there are none of one kind, all are of the
    other; where there are none at all, the result is empty.

    Raises:
      ValueError: as `testbed.evaluation.paths.graph_of`.
    """
    graph = graph_of(model, task)
    failing, refused = wrong_ends(model, task, graph)
    share = 0 if not failing.any() else number if not refused.any() else number // 2
    drawn = [np.zeros((0, task.prompt_length), np.int32)]
    for stream, wanted, size in ((0, failing, share), (1, refused, (number - share) * refused.any())):
        if size:
            drawn.append(draw(jax.random.fold_in(key, stream), graph, task, wanted=wanted, number=int(size)))
    return np.concatenate(drawn), share


def train_with_oracle(
    key: jax.Array,
    model: Machine,
    task: Task,
    schedule: Schedule,
    *,
    lesson: Lesson = USUAL.lesson,
    watch: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[Machine, History]:
    """Train a machine in rounds, as `testbed.training.rounds.train` does, with the oracle in place of an attack.

    The schedule's budget buys nothing: the oracle pays no calls. By default a batch is half clean, and half of what
    all rounds drew. `History.found` is the share of failures among what was drawn.

    Raises:
      ValueError: the schedule has no rounds, or the model cannot be counted by paths.
      FloatingPointError: the loss became NaN or infinite.
    """
    if not schedule.rounds:
        raise ValueError("an oracle is asked in rounds; give the schedule at least 1")
    work, state = units(schedule), begin(model, task, schedule)
    losses, found = [], []
    for done, unit in enumerate(map(Unit, *work)):
        if unit.attacks:
            state, share = _ask(jax.random.fold_in(key, unit.number), state, task, schedule.finds // schedule.units)
            found.append(share)
        else:
            state, row = train_unit(key, state, unit, task, descent=schedule.descent, lesson=lesson)
            refuse_nan(row, unit.number, schedule)
            losses.append(np.asarray(row))
        watch(done + 1, len(work.number))
    return state.model, History(np.concatenate(losses), np.array(found, np.float32), np.asarray(state.pool))


def _ask(key: jax.Array, state: State, task: Task, room: int) -> tuple[State, float]:
    """Fill the pool's next `room` places; they stay unusable as far as nothing is wrong any more."""
    drawn, failing = wrong_prompts(key, state.model, task, room)
    first, held = int(state.filled), len(drawn)
    pool = state.pool.at[first : first + held].set(jnp.asarray(drawn))
    usable = state.usable.at[first : first + held].set(True)
    return state._replace(pool=pool, usable=usable, filled=state.filled + room), failing / max(held, 1)
