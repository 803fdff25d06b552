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
from testbed.compilation import SOONER
from testbed.runs import checkpoints
from testbed.task import Task
from testbed.training.defence import USUAL, Defence
from testbed.training.schedule import Schedule, Unit, units
from testbed.training.source import Source
from testbed.training.units import State, begin, programs, studied, study_of


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
    does = programs(task, schedule, attack, defence)
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
def _text_digest(program: Callable, static: frozenset, structure: Any, leaves: tuple) -> str:
    """The digest of one program's text, for a state of `structure` whose leaves have these shapes and types."""
    state = jax.tree.unflatten(structure, leaves)
    key, unit = jax.eval_shape(lambda: (jax.random.key(0), Unit(jnp.array(False), *jnp.zeros((2,), jnp.int32))))
    return hashlib.sha256(program.lower(key, state, unit, **dict(static)).as_text().encode()).hexdigest()


def program_digest(
    task: Task, schedule: Schedule, attack: Attack | Source | None = None, defence: Defence = USUAL, *, model
) -> str:
    """A name for the programs that train under `schedule`, the same in every process.

    Whatever changes a program changes the name: an edit of the code, another task, attack, loss or number, or
    another version of JAX. A program's text is made once for all keys, weights and orders of units.

    Args:
      model: it, or its shapes (`jax.eval_shape`): the weights don't matter.
    """
    key, loss = jax.random.key(0), defence.lesson.loss
    learnt = jax.eval_shape(lambda key: studied(key, task, loss), key)
    state = jax.eval_shape(lambda model, learnt: begin(model, task, schedule, learnt), model, learnt)
    leaves, structure = jax.tree.flatten(state)
    kinds = [False, True] if schedule.rounds else [False]
    does = programs(task, schedule, attack, defence)
    parts = [
        attack.text
        if kind and isinstance(attack, Source)  # asked on the host: no program
        else _text_digest(does[kind].func, frozenset(does[kind].keywords.items()), structure, tuple(leaves))
        for kind in kinds
    ]
    if loss.study:
        parts.append(study_of(task, loss.study).lower(key).as_text())
    parts.append(str(schedule.rates))  # taken as they come
    # How a search is compiled rounds its numbers, and does not stand in its text.
    parts += [str(SOONER)] * bool(schedule.rounds) + ["best"] * schedule.best
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
    if schedule.rounds and attack is None:
        raise ValueError(f"{schedule.rounds} rounds need an attack; choose one or set rounds to 0")
    work, start = units(schedule), begin(model, task, schedule, studied(key, task, defence.lesson.loss))
    total = len(work.number)
    name = partial(identity, key, model, task, schedule, attack=attack, defence=defence)
    resume, keep = checkpoints.keeper(checkpoint, name)
    nothing = np.full((total, schedule.steps // schedule.units), np.nan, np.float32), np.full(total, np.nan, np.float32)
    done, state, losses, found, least, best = resume((0, start, *nothing, np.inf, model))
    watch(done, total)
    left = Unit(*(column[done:] for column in work))
    for unit, after, row in progress(key, state, left, task, schedule=schedule, attack=attack, defence=defence):
        (found if unit.attacks else losses)[done] = row
        if not unit.attacks:
            refuse_nan(row, unit.number, schedule)
            if schedule.best and float(row.mean()) < least:
                least, best = float(row.mean()), after.model
        state, done = after, done + 1
        keep((done, state, losses, found, least, best))
        watch(done, total)
    pool = np.asarray(state.pool)[: schedule.finds * bool(schedule.rounds)]
    if isinstance(attack, Source):  # which leaves places empty once nothing is wrong
        pool = pool[np.asarray(state.usable)[: len(pool)]]
    return (best if schedule.best else state.model), History(losses[~work.attacks].ravel(), found[work.attacks], pool)


def refuse_nan(losses: np.ndarray, number: int, schedule: Schedule) -> None:
    """Say at which step the loss of train unit `number` was no number any more.

    Raises:
      FloatingPointError: a loss is NaN or infinite.
    """
    broken = ~np.isfinite(np.asarray(losses))
    if broken.any():
        step = int(broken.argmax())
        at = int(number) * (schedule.steps // schedule.units) + step
        raise FloatingPointError(
            f"the loss became {losses[step]} at step {at} of {schedule.steps}; "
            f"lower the learning rate ({schedule.learning_rate}) or check the task's labels"
        )
