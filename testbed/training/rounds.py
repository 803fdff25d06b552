"""Training: supervised steps, and rounds of attack and training under a schedule that keeps compute equal.

A schedule only *orders* equal units of work (`testbed.training.units`). Every update frequency therefore makes exactly
the same attack calls, finds and gradient steps, from the same streams of keys, in the same two compiled programs. What
a unit does is a `Defence`: which finds it keeps, which it replays, what its loss sees (`testbed.training.defence`).
"""

import hashlib
from collections.abc import Callable, Iterator
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from testbed.attacks.search import Attack
from testbed.compilation import LEVEL
from testbed.runs import checkpoints
from testbed.task import Task
from testbed.training.defence import USUAL, Defence
from testbed.training.schedule import Schedule, Unit, units
from testbed.training.source import Source
from testbed.training.units import Programs, State, begin, programs, studied, study_of


class History(NamedTuple):
    """What happened.

    Attributes:
      loss: of each step `[steps]`.
      found: the share of each attack unit's finds that failed `[units]`.
      pool: what was kept of them, in order `[finds, T]`; empty without rounds, shorter if a source had less to give.
    """

    loss: np.ndarray
    found: np.ndarray
    pool: np.ndarray


def progress(
    key: jax.Array,
    state: State,
    work: Unit,
    task: Task,
    *,
    schedule: Schedule,
    attack: Attack | Source | None = None,
    defence: Defence = USUAL,
) -> Iterator[tuple[Unit, State, np.ndarray]]:
    """Do the units of `work`, in order; yields each with the state after it and its row.

    That is a train unit's losses `[steps]`, and the share of an attack unit's finds that failed.
    """
    return _done(key, programs(task, schedule, attack, defence), state, work)


def _done(key: jax.Array, does: Programs, state: State, work: Unit) -> Iterator[tuple[Unit, State, np.ndarray]]:
    for unit in map(Unit, *work):
        state, row = does[bool(unit.attacks)](key, state, unit)
        yield unit, state, jax.device_get(row)


@partial(jax.jit, static_argnames=("task", "schedule", "attack", "defence"))
def advance(
    key: jax.Array,
    state: State,
    work: Unit,
    task: Task,
    *,
    schedule: Schedule,
    attack: Attack | None,
    defence: Defence = USUAL,
) -> tuple[State, tuple[jax.Array, jax.Array]]:
    """Do the units of `work`, in order: a pure function of `key`, compiled as one program, for populations (`vmap`).

    `train` does the same unit by unit, bit for bit. A source cannot be asked from within a program.

    Returns:
      The new state, and a row a unit: losses `[units, steps]` (NaN in attack units), shares that failed `[units]`
      (NaN in train units).
    """
    no_loss = jnp.full(schedule.steps // schedule.units, jnp.nan)
    does = programs(task, schedule, attack, defence)

    def train(state, unit):
        state, losses = does[False](key, state, unit)
        return state, (losses, jnp.nan)

    def find(state, unit):
        state, found = does[True](key, state, unit)
        return state, (no_loss, found)

    def one_unit(state, unit):
        if attack is None:
            return train(state, unit)
        return jax.lax.cond(unit.attacks, find, train, state, unit)

    return jax.lax.scan(one_unit, state, work)


@lru_cache(maxsize=1024)
def _text_digest(program: Callable, static: frozenset, structure: Any, leaves: tuple, members: tuple[int, ...]) -> str:
    """The digest of one program's text, for states of `structure` whose leaves have these shapes and types."""
    stacked = [jax.ShapeDtypeStruct((*members, *leaf.shape), leaf.dtype) for leaf in leaves]
    keys = jax.ShapeDtypeStruct(members, jax.eval_shape(jax.random.key, 0).dtype)
    unit = jax.eval_shape(lambda: Unit(jnp.array(False), *jnp.zeros((2,), jnp.int32)))
    text = program.lower(keys, jax.tree.unflatten(structure, stacked), unit, **dict(static)).as_text()
    return hashlib.sha256(text.encode()).hexdigest()


def texts(
    does: Programs, task: Task, schedule: Schedule, defence: Defence, *, model, members: tuple[int, ...] = ()
) -> list[str]:
    """Names for what does the units of a schedule: digests of programs, for one model or for so many stacked ones."""
    learnt = jax.eval_shape(lambda key: studied(key, task, defence.lesson.loss), jax.random.key(0))
    state = jax.eval_shape(lambda model, learnt: begin(model, task, schedule, learnt), model, learnt)
    leaves, structure = jax.tree.flatten(state)
    named = []
    for kind in [False, True] if schedule.rounds else [False]:
        program, static = does[kind].func, does[kind].keywords
        source = static.get("source")  # asked on the host: no program
        parts = program, frozenset(static.items()), structure, tuple(leaves), members
        named.append(source.text if source else _text_digest(*parts))
    return named


def program_digest(
    task: Task, schedule: Schedule, attack: Attack | Source | None = None, defence: Defence = USUAL, *, model
) -> str:
    """A name for the programs that train under `schedule`, the same in every process.

    Whatever changes a program changes the name: an edit of the code, another task, attack, loss or number, or
    another version of JAX. A program's text is made once for all keys, weights and orders of units.

    Args:
      model: it, or its shapes (`jax.eval_shape`): the weights don't matter.
    """
    parts = texts(programs(task, schedule, attack, defence), task, schedule, defence, model=model)
    study = defence.lesson.loss.study
    if study:
        parts.append(study_of(task, study).lower(jax.random.key(0)).as_text())
    parts.append(str(schedule.rates))  # taken as they come
    # How a search is compiled rounds its numbers, and does not stand in its text.
    parts += [str(LEVEL)] * bool(schedule.rounds) + ["best"] * schedule.best
    return hashlib.sha256(" ".join(parts).encode()).hexdigest()


def identity(
    key: jax.Array,
    model,
    task: Task,
    schedule: Schedule,
    *,
    attack: Attack | Source | None = None,
    defence: Defence = USUAL,
) -> str:
    """What a run of `train` is: its programs, key, weights and order of units, the compiler and the device.

    Two runs of one identity end with the same weights, bit for bit.
    """
    text = program_digest(task, schedule, attack, defence, model=model)
    return checkpoints.identity((), text, key, model, units(schedule))


class Followed(NamedTuple):
    """A schedule that was followed to its end, by one model or by stacked ones `[P, ...]`.

    Attributes:
      model: what was trained, or if the schedule keeps the best what stood after its best unit.
      state: the last one.
      loss: `[P, steps]`; found: `[P, units]`, as in `History`. Of one model alone without the first axis.
    """

    model: Any
    state: State
    loss: np.ndarray
    found: np.ndarray


def follow(
    key: jax.Array,
    does: Programs,
    start: State,
    schedule: Schedule,
    *,
    name: Callable[[], str],
    watch: Callable[[int, int], None],
    checkpoint: Path | None,
) -> Followed:
    """Do all units of a schedule, by the programs of one model, or by those of stacked ones.

    Args:
      key: the run's, or a key a member `[P]`. `start` is then stacked too.
      name: the identity of the run, as its checkpoint bears it.
      watch, checkpoint: as of `train`.

    Raises:
      FloatingPointError: a loss became NaN or infinite; says at which step, and of which member.
    """
    work, members = units(schedule), key.shape
    total, steps = len(work.number), schedule.steps // schedule.units
    resume, keep = checkpoints.keeper(checkpoint, name)
    losses = np.full((total, *members, steps), np.nan, np.float32)
    found, least = np.full((total, *members), np.nan, np.float32), np.full(members, np.inf, np.float32)
    done, state, losses, found, least, best = resume((0, start, losses, found, least, start.model))
    watch(done, total)
    for unit, after, row in _done(key, does, state, Unit(*(column[done:] for column in work))):
        (found if unit.attacks else losses)[done] = row
        if not unit.attacks:
            for member in np.ndindex(members):
                _refuse_nan(row[member], unit.number, schedule, member)
            better = row.mean(axis=-1) < least
            if schedule.best and better.any():
                least, best = np.where(better, row.mean(axis=-1), least), _where(better, after.model, best)
        state, done = after, done + 1
        keep((done, state, losses, found, least, best))
        watch(done, total)
    loss = np.moveaxis(losses[~work.attacks], 0, -2).reshape(*members, -1)
    return Followed(best if schedule.best else state.model, state, loss, np.moveaxis(found[work.attacks], 0, -1))


def _where(chosen: np.ndarray, new: Any, old: Any) -> Any:
    """The leaves of `new` for the members that are chosen, else those of `old`."""
    return jax.tree.map(
        lambda a, b: jnp.where(chosen.reshape(chosen.shape + (1,) * (a.ndim - chosen.ndim)), a, b), new, old
    )


def _refuse_nan(losses: np.ndarray, number: int, schedule: Schedule, member: tuple[int, ...]) -> None:
    """Say at which step the loss of train unit `number` was no number any more.

    Raises:
      FloatingPointError: a loss is NaN or infinite.
    """
    broken = ~np.isfinite(losses)
    if broken.any():
        step = int(broken.argmax())
        at = int(number) * (schedule.steps // schedule.units) + step
        whose = "".join(f"member {n} of a population: " for n in member)
        raise FloatingPointError(
            f"{whose}the loss became {losses[step]} at step {at} of {schedule.steps}; "
            f"lower the learning rate ({schedule.learning_rate}) or check the task's labels"
        )


def train(
    key: jax.Array,
    model,
    task: Task,
    schedule: Schedule,
    *,
    attack: Attack | Source | None = None,
    defence: Defence = USUAL,
    watch: Callable[[int, int], None] = lambda done, total: None,
    checkpoint: Path | None = None,
) -> tuple[Any, History]:
    """Train `model` on `task` under `schedule`; with rounds, adversarially against `attack`, in the way of `defence`.

    A source in place of the attack is asked for finds and pays no calls: the schedule's budget buys it nothing.

    `watch(units done, units in all)` is called from the host after every unit; it changes no number. A long run keeps
    its state in the file `checkpoint` between units, and the same run goes on from there, with the same result bit for
    bit.

    Raises:
      ValueError: the schedule has rounds but no attack is given; or the defence selects among finds of a source, or
        the source cannot answer.
      FloatingPointError: the loss became NaN or infinite; says at which step.
    """
    start = begin(model, task, schedule, studied(key, task, defence.lesson.loss))
    name = partial(identity, key, model, task, schedule, attack=attack, defence=defence)
    does = programs(task, schedule, attack, defence)
    ended = follow(key, does, start, schedule, name=name, watch=watch, checkpoint=checkpoint)
    pool = np.asarray(ended.state.pool)[: schedule.finds * bool(schedule.rounds)]
    if isinstance(attack, Source):  # which leaves places empty once nothing is wrong
        pool = pool[np.asarray(ended.state.usable)[: len(pool)]]
    return ended.model, History(ended.loss, ended.found, pool)
