"""Populations: several members (seeds) trained under one schedule as one program, for an accelerator.

A small model's step is a dozen small kernels, and launching them takes longer than computing them. So members are
stacked, and each unit of work does all of them: in the order of `testbed.training.rounds`, in its programs under
`vmap`. The members are divided over all devices (`testbed.devices.spread`).
"""

import hashlib
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
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
from testbed.training.schedule import Schedule, Unit, units
from testbed.training.source import Source
from testbed.training.units import State


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


def programs(task: Task, schedule: Schedule, attack: Attack | None, defence: Defence = USUAL) -> dict[bool, partial]:
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
    loss = defence.lesson.loss
    alone = rounds.program_digest(task, schedule, attack, defence, model=model)
    learnt = jax.eval_shape(lambda key: lone.studied(key, task, loss), jax.random.key(0))
    state = jax.eval_shape(lambda model, learnt: lone.begin(model, task, schedule, learnt), model, learnt)
    leaves, structure = jax.tree.flatten(state)
    does = programs(task, schedule, attack, defence)
    texts = [
        _text_digest(does[kind].func, frozenset(does[kind].keywords.items()), structure, tuple(leaves), members)
        for kind in ([False, True] if schedule.rounds else [False])
    ]
    return hashlib.sha256(" ".join([alone, *texts]).encode()).hexdigest()


@lru_cache(maxsize=256)
def _text_digest(program: Callable, static: frozenset, structure: Any, leaves: tuple, members: int) -> str:
    of_all = [jax.ShapeDtypeStruct((members, *leaf.shape), leaf.dtype) for leaf in leaves]
    keys = jax.eval_shape(lambda: jnp.stack([jax.random.key(0)] * members))
    unit = jax.eval_shape(lambda: Unit(jnp.array(False), *jnp.zeros((2,), jnp.int32)))
    text = program.lower(keys, jax.tree.unflatten(structure, of_all), unit, **dict(static)).as_text()
    return hashlib.sha256(text.encode()).hexdigest()


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
    if schedule.rounds and attack is None:
        raise ValueError(f"{schedule.rounds} rounds need an attack; choose one or set rounds to 0")
    does, members = programs(task, schedule, attack, defence), len(models)
    work, states = units(schedule), begin(keys, models, task, schedule, defence=defence)
    total, first = len(work.number), stacked(models)

    def name():
        text = program_digest(task, schedule, attack, defence, model=member(first, 0), members=members)
        return checkpoints.identity((), text.encode(), keys, first, work)

    resume, keep = checkpoints.keeper(checkpoint, name)
    losses = np.full((total, members, schedule.steps // schedule.units), np.nan, np.float32)
    found = np.full((total, members), np.nan, np.float32)
    least = np.full(members, np.inf, np.float32)
    done, states, losses, found, least, best = resume((0, states, losses, found, least, first))
    watch(done, total)
    for unit in map(Unit, *(column[done:] for column in work)):
        states, row = does[bool(unit.attacks)](keys, states, unit)
        row = jax.device_get(row)
        (found if unit.attacks else losses)[done] = row
        if not unit.attacks:
            for number, of_member in enumerate(row):
                _refuse_nan(number, of_member, unit, schedule)
            if schedule.best:
                better = row.mean(axis=1) < least
                least, best = np.where(better, row.mean(axis=1), least), _where(better, states.model, best)
        done += 1
        keep((done, states, losses, found, least, best))
        watch(done, total)
    ended = best if schedule.best else states.model
    pools = np.asarray(states.pool)[:, : schedule.finds * bool(schedule.rounds)]
    return [
        (member(ended, n), History(losses[~work.attacks, n].ravel(), found[work.attacks, n], pools[n]))
        for n in range(members)
    ]


def _where(chosen: np.ndarray, new: Any, old: Any) -> Any:
    """The leaves of `new` for the members that are chosen `[P]`, else those of `old`."""
    return jax.tree.map(lambda a, b: jnp.where(chosen.reshape(-1, *[1] * (a.ndim - 1)), a, b), new, old)


def _refuse_nan(number: int, losses: np.ndarray, unit: Unit, schedule: Schedule) -> None:
    try:
        rounds.refuse_nan(losses, unit.number, schedule)
    except FloatingPointError as error:
        raise FloatingPointError(f"member {number} of a population: {error}") from error
