"""Populations: several members (seeds) trained under one schedule as one program, for an accelerator.

A small model's step is a dozen small kernels, and launching them takes longer than computing them. So members are
stacked, and each unit of work does all of them: in the order of `testbed.training.rounds`, in its programs under
`vmap`. The members are divided over all devices (`testbed.devices.spread`).
"""

import hashlib
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from testbed.attacks.search import Attack
from testbed.compilation import compiled_sooner
from testbed.devices import spread
from testbed.runs import checkpoints
from testbed.task import Task
from testbed.training import rounds
from testbed.training import units as lone
from testbed.training.defence import USUAL, Defence
from testbed.training.rounds import History
from testbed.training.schedule import Schedule, units
from testbed.training.source import Source
from testbed.training.units import Programs, State


def _of_all(program: Callable, keys: jax.Array, states: State, shared: dict, **static) -> tuple[State, jax.Array]:
    """A unit's `program` on every member: keys `[P]`, and states with leading axis P; all are given what is shared."""

    def mine(shared, keys, states):
        return jax.vmap(lambda key, state: program(key, state, **shared, **static))(keys, states)

    return spread(mine, shared, keys, states)


@partial(jax.jit, static_argnames=("task", "descent", "lesson"))
def train_units(keys, states, unit, task, *, rates, descent, lesson):
    """`lone.train_unit` of every member: states and losses `[P, steps]`."""
    shared = {"unit": unit, "rates": rates}
    return _of_all(lone.train_unit, keys, states, shared, task=task, descent=descent, lesson=lesson)


@compiled_sooner("task", "search", "attack", "selection")
def attack_units(keys, states, unit, task, *, search, attack, selection):
    """`lone.attack_unit` of every member: states, and the shares that failed `[P]`."""
    shared, static = {"unit": unit}, dict(task=task, search=search, attack=attack, selection=selection)
    return _of_all(lone.attack_unit, keys, states, shared, **static)


TOGETHER = {lone.train_unit: train_units, lone.attack_unit: attack_units}


def programs(task: Task, schedule: Schedule, attack: Attack | None, defence: Defence = USUAL) -> Programs:
    """`lone.programs`, of all members at once.

    Raises:
      ValueError: as there; or the attack is a source, which is asked on the host about one model.
    """
    if isinstance(attack, Source):
        raise ValueError(f"{attack.name} is asked about one model at a time; train its members alone (--population=1)")
    alone = lone.programs(task, schedule, attack, defence)
    return {kind: partial(TOGETHER[does.func], **does.keywords) for kind, does in alone.items()}


def stacked(trees: Sequence[Any]) -> Any:
    """Pytrees of one structure as one, with a leading axis."""
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def member(tree: Any, number: int) -> Any:
    """One of the stacked pytrees."""
    return jax.tree.map(lambda leaf: leaf[number], tree)


def begin(keys: jax.Array, models: Sequence[Any], task: Task, schedule: Schedule, *, defence: Defence = USUAL) -> State:
    """The states of all members before the first unit, stacked."""
    learnt = [lone.studied(key, task, defence.lesson.loss) for key in keys]
    return stacked([lone.begin(model, task, schedule, of) for model, of in zip(models, learnt, strict=True)])


def program_digest(
    task: Task, schedule: Schedule, attack: Attack | None = None, defence: Defence = USUAL, *, model, members: int
) -> str:
    """A name for the programs that train so many members together on these devices, as `rounds.program_digest`.

    It differs from that of one member alone, since sums are rounded otherwise.
    """
    alone = rounds.program_digest(task, schedule, attack, defence, model=model)
    does = programs(task, schedule, attack, defence)
    together = rounds.texts(does, task, schedule, defence, model=model, members=(members,))
    return hashlib.sha256(" ".join([alone, *together]).encode()).hexdigest()


def train_population(
    keys: jax.Array,
    models: Sequence[Any],
    task: Task,
    schedule: Schedule,
    *,
    attack: Attack | None = None,
    defence: Defence = USUAL,
    watch: Callable[[int, int], None] = lambda done, total: None,
    checkpoint: Path | None = None,
) -> list[tuple[Any, History]]:
    """Train all members under one schedule; each ends as `rounds.train` would end it, up to rounding.

    A member does not depend on the others, but on how many they are: another number is another program.

    Args:
      keys: `[P]`, a key a member; models: P of one structure, where they start from.
      watch, checkpoint: as of `rounds.train`; the checkpoint is one of all members.

    Returns:
      The model and history of each member.

    Raises:
      ValueError: as `rounds.train`, or a source is given in place of the attack.
      FloatingPointError: a member's loss became NaN or infinite; says of which, and at which step.
    """
    does, start = programs(task, schedule, attack, defence), begin(keys, models, task, schedule, defence=defence)

    def name():
        text = program_digest(task, schedule, attack, defence, model=models[0], members=len(models))
        return checkpoints.identity((), text.encode(), keys, start.model, units(schedule))

    ended = rounds.follow(keys, does, start, schedule, name=name, watch=watch, checkpoint=checkpoint)
    pools = np.asarray(ended.state.pool)[:, : schedule.finds * bool(schedule.rounds)]
    histories = map(History, ended.loss, ended.found, pools)
    return [(member(ended.model, n), history) for n, history in enumerate(histories)]
