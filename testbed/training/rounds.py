"""Training: supervised steps, and rounds of attack and training under a schedule that keeps compute equal.

A schedule only *orders* equal units of work. Every update frequency therefore makes exactly the same attack calls,
finds and gradient steps, from the same streams of keys (unit j draws from `fold_in(key, j)` in every
arm), in the same two compiled programs: one attacks, one trains. What a unit does is a `Defence`: which finds it keeps,
which it replays, what its loss sees (`testbed.training.defence`).

In place of an attack a `Source` may be asked for finds. It answers on the host, between the compiled units.
"""

import hashlib
from collections.abc import Callable, Iterator
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from testbed.attacks.search import Attack, attack_model
from testbed.compilation import SOONER, compiled_sooner
from testbed.objective import Objective
from testbed.policy import greedy
from testbed.runs import checkpoints
from testbed.task import Task
from testbed.training.coverage import fresh_prompts
from testbed.training.defence import USUAL, Defence, Lesson, Selection, refuse_unfit
from testbed.training.losses import Loss, Study
from testbed.training.schedule import Descent, Schedule, Search, Unit, units
from testbed.training.selection import Candidates, potential, safe_twin, with_twins
from testbed.training.source import Source


class State(NamedTuple):
    """A run between two units.

    Attributes:
      model, optimizer: what is trained, and the optimiser's state.
      pool: `[finds, T]`; usable: bool `[finds]`, the places whose finds may be trained on; filled: places taken.
      step: gradient steps taken.
      learnt: what the loss learnt before the run; None if nothing.
    """

    model: Any
    optimizer: Any
    pool: jax.Array
    usable: jax.Array
    filled: jax.Array
    step: jax.Array
    learnt: Any = None


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


def optimizer(descent: Descent, *, clip: float = 1.0, warm_up: int = 50) -> optax.GradientTransformation:
    """AdamW with clipped gradients, a short warm-up and one cosine to zero.

    Args:
      clip: the largest norm of a gradient, over all weights; a longer one is shortened.
      warm_up: steps of a linear rise to the peak of the learning rate; at most half of all steps.
    """
    rate = optax.warmup_cosine_decay_schedule(
        0.0, descent.learning_rate, warmup_steps=min(warm_up, descent.steps // 2), decay_steps=descent.steps
    )
    adam = optax.adamw(rate, b2=descent.b2, eps=descent.adam_eps, weight_decay=descent.weight_decay)
    return optax.chain(optax.clip_by_global_norm(clip), adam)


def studied(key: jax.Array, task: Task, loss: Loss) -> Any:
    """What a loss learns before the run of `key`; None if nothing."""
    return loss.study and _study_of(task, loss.study)(jax.random.fold_in(key, 4))


@lru_cache(maxsize=64)
def _study_of(task: Task, study: Study) -> Callable[[jax.Array], Any]:
    return jax.jit(partial(study.learn, task=task))


def begin(model, task: Task, schedule: Schedule, learnt: Any = None) -> State:
    """The state before the first unit, with a fresh optimiser and an empty pool. `learnt`: as `studied` gives it."""
    pool = jnp.zeros((schedule.finds, task.prompt_length), jnp.int32)
    zero = jnp.zeros((), jnp.int32)
    return State(
        model, optimizer(schedule.descent).init(model), pool, jnp.zeros(schedule.finds, bool), zero, zero, learnt
    )


def batch_of(
    key: jax.Array,
    state: State,
    task: Task,
    descent: Descent,
    *,
    lesson: Lesson,
    first: jax.Array,
    run_key: jax.Array | None = None,
) -> jax.Array:
    """The prompts `[B, T]` of one step: in front finds of the pool, then clean ones, at the end labelled ones.

    `first`: where the newest round's finds begin in the pool. `run_key`: as in `fresh_prompts`, for lessons with any.
    """
    clean_key, pool_key = jax.random.split(key)
    prompts = jax.vmap(task.sample)(jax.random.split(clean_key, descent.batch))
    if lesson.fresh is not None:
        number = round(lesson.fresh.share * descent.batch)
        drawn = fresh_prompts(jax.random.fold_in(key, 3), task, lesson.fresh, number, run_key=run_key)
        prompts = jnp.concatenate([prompts[: descent.batch - number], drawn])
    if not descent.finds:
        return prompts
    drawable = (state.usable & lesson.replay(jnp.arange(descent.finds), first)).cumsum()
    # The n-th of the places that may be drawn, n being uniform.
    nth = jax.random.randint(pool_key, (descent.batch,), 0, jnp.maximum(drawable[-1], 1))
    rows = jnp.searchsorted(drawable, nth, side="right")
    found, room = state.pool[rows], round(lesson.share * descent.batch)
    if lesson.twins:
        others = np.arange(1, room, 2)  # a twin costs more than the rest of a step: none is made that is not used
        keys = jax.random.split(jax.random.fold_in(pool_key, 1), descent.batch)[others]
        found = found.at[others].set(jax.vmap(lambda key, prompt: safe_twin(key, task, prompt))(keys, found[others]))
    from_pool = (jnp.arange(descent.batch) < room) & (drawable[-1] > 0)
    return jnp.where(from_pool[:, None], found, prompts)


@partial(jax.jit, static_argnames=("task", "descent", "lesson"))
def train_unit(
    key: jax.Array, state: State, unit: Unit, task: Task, *, descent: Descent, lesson: Lesson
) -> tuple[State, jax.Array]:
    """Take one unit's gradient steps; also returns their losses `[steps]`. `key` is the run's."""
    update = optimizer(descent).update
    run_key = None if lesson.fresh is None else jax.random.fold_in(key, 2)
    key = jax.random.fold_in(jax.random.split(key)[1], unit.number)
    first = unit.first * (descent.finds // descent.units)

    def one_step(state, key):
        prompts = batch_of(key, state, task, descent, lesson=lesson, first=first, run_key=run_key)
        loss_key = jax.random.fold_in(key, 2)
        learnt = () if state.learnt is None else (state.learnt,)
        loss, gradients = jax.value_and_grad(lesson.loss.value, 1)(loss_key, state.model, task, prompts, *learnt)
        updates, optimizer_state = update(gradients, state.optimizer, state.model)
        model = optax.apply_updates(state.model, updates)
        return state._replace(model=model, optimizer=optimizer_state, step=state.step + 1), loss

    return jax.lax.scan(one_step, state, jax.random.split(key, descent.steps // descent.units))


@compiled_sooner("task", "search", "attack", "selection")
def attack_unit(
    key: jax.Array, state: State, unit: Unit, task: Task, *, search: Search, attack: Attack, selection: Selection
) -> tuple[State, jax.Array]:
    """Attack the current model and add what is kept to the pool; also returns the share of the finds that failed.

    `key` is the run's.
    """
    key = jax.random.fold_in(jax.random.split(key)[0], unit.number)
    objective = Objective(task, state.model, greedy(task))
    places = search.finds // search.units
    room, attackers = selection.searched(places), selection.attackers(places)
    trace = attack_model(key, attack, objective, attackers=attackers, budget=search.budget)
    failed, rows = trace.margin <= 0, jnp.arange(room)
    if selection.candidates > 1:
        bad = jax.vmap(partial(potential, task))(trace.prompt)
        candidates, held = Candidates(trace.prompt, trace.margin, bad), jnp.arange(search.finds) < state.filled
        rows = selection.order(jax.random.fold_in(key, room), candidates, state.pool, held)
        if selection.failures_only:  # what failed comes first, in the order's order
            rows = rows[jnp.argsort(~failed[rows], stable=True)]
        rows = rows[:room]
    kept, usable = trace.prompt[rows], failed[rows] if selection.failures_only else jnp.ones(room, bool)
    if selection.twins:
        kept, usable = with_twins(jax.random.fold_in(key, room + 1), task, kept, usable)
    pool = jax.lax.dynamic_update_slice(state.pool, kept, (state.filled, 0))
    usable = jax.lax.dynamic_update_slice(state.usable, usable, (state.filled,))
    return state._replace(pool=pool, usable=usable, filled=state.filled + places), failed.mean()


def ask_unit(
    key: jax.Array, state: State, unit: Unit, task: Task, *, search: Search, source: Source
) -> tuple[State, np.ndarray]:
    """Ask a source about the current model, as `attack_unit` attacks it; places that it leaves empty stay unusable."""
    key = jax.random.fold_in(jax.random.split(key)[0], int(unit.number))
    room, first = search.finds // search.units, int(state.filled)
    prompts, failing = source.ask(key, state.model, task, room)
    places = slice(first, first + len(prompts))
    pool, usable = state.pool.at[places].set(prompts), state.usable.at[places].set(True)
    return state._replace(pool=pool, usable=usable, filled=state.filled + room), np.float32(failing)


def programs(
    task: Task, schedule: Schedule, attack: Attack | Source | None, defence: Defence = USUAL
) -> dict[bool, partial]:
    """What does a unit that attacks (True), and one that trains (False): `(key, state, unit) -> (state, row)`.

    Each is given only its part of schedule and defence, so arms that are alike in a part share what is compiled.

    Raises:
      ValueError: the parts of the defence's batches do not fit, or it selects among the finds of a source.
    """
    refuse_unfit(schedule, defence)
    trains = partial(train_unit, task=task, descent=schedule.descent, lesson=defence.lesson)
    if not isinstance(attack, Source):
        finds = partial(attack_unit, attack=attack, selection=defence.selection)
    elif defence.selection == Selection():
        finds = partial(ask_unit, source=attack)
    else:
        raise ValueError(f"{attack.name} gives no more finds than there is room for; keep the usual selection of finds")
    return {False: trains, True: partial(finds, task=task, search=schedule.search)}


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


def forget() -> None:
    """Forget what was compiled to train and to attack while training; all else stays."""
    for program in (train_unit, attack_unit):
        program.clear_cache()


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
        parts.append(_study_of(task, loss.study).lower(key).as_text())
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
