"""What one unit of work does: it attacks the model and keeps finds, or takes gradient steps.

There are two compiled programs, one that attacks and one that trains. Unit j draws from `fold_in(key, j)`,
whatever comes before it (`testbed.training.schedule`). In place of an attack a `Source` may be asked for finds.
It answers on the host.
"""

from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from testbed.attacks.search import Attack, attack_model
from testbed.attacks.twins import safe_twin, with_twins
from testbed.compilation import compiled_sooner
from testbed.objective import Objective
from testbed.policy import greedy
from testbed.task import Task
from testbed.training.coverage import fresh_prompts
from testbed.training.defence import USUAL, Defence, Lesson, Selection, refuse_unfit
from testbed.training.losses import Loss, Study
from testbed.training.schedule import Descent, Rates, Schedule, Search, Unit
from testbed.training.selection import Candidates, potential
from testbed.training.source import Source


class State(NamedTuple):
    """A run between two units.

    Attributes:
      model, optimizer: what is trained, and the optimiser's state.
      pool: `[finds, T]`; usable: bool `[finds]`, the places whose finds may be trained on; filled: places taken.
      step: gradient steps taken.
      learnt: what the loss learnt before the run, and what it keeps from step to step; None if nothing.
    """

    model: Any
    optimizer: Any
    pool: jax.Array
    usable: jax.Array
    filled: jax.Array
    step: jax.Array
    learnt: Any = None


def optimizer(descent: Descent, rates: Rates) -> optax.GradientTransformation:
    """AdamW with clipped gradients, a short warm-up and one cosine to zero. The `rates` may be traced."""
    rise, peak = min(descent.warm_up, descent.steps // 2), rates.learning_rate
    parts = optax.linear_schedule(0.0, peak, rise), optax.cosine_decay_schedule(peak, descent.steps - rise)
    rate = optax.join_schedules(parts, [rise])
    adam = optax.adamw(rate, b2=descent.b2, eps=rates.adam_eps, weight_decay=rates.weight_decay)
    return optax.chain(optax.clip_by_global_norm(descent.clip), adam)


def studied(key: jax.Array, task: Task, loss: Loss) -> Any:
    """What a loss learns before the run of `key`; None if nothing."""
    return loss.study and study_of(task, loss.study)(jax.random.fold_in(key, 4))


@lru_cache(maxsize=64)
def study_of(task: Task, study: Study) -> Callable[[jax.Array], Any]:
    """The compiled program of a study: `key -> what is learnt`."""
    return jax.jit(partial(study.learn, task=task))


def begin(model, task: Task, schedule: Schedule, learnt: Any = None) -> State:
    """The state before the first unit, with a fresh optimiser and an empty pool. `learnt`: as `studied` gives it."""
    pool, usable = jnp.zeros((schedule.finds, task.prompt_length), jnp.int32), jnp.zeros(schedule.finds, bool)
    start, zero = optimizer(schedule.descent, schedule.rates).init(model), jnp.zeros((), jnp.int32)
    return State(model, start, pool, usable, zero, zero, learnt)


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
    key: jax.Array, state: State, unit: Unit, task: Task, *, rates: Rates, descent: Descent, lesson: Lesson
) -> tuple[State, jax.Array]:
    """Take one unit's gradient steps; also returns their losses `[steps]`. `key` is the run's."""
    update = optimizer(descent, rates).update
    run_key = None if lesson.fresh is None else jax.random.fold_in(key, 2)
    key = jax.random.fold_in(jax.random.split(key)[1], unit.number)
    first = unit.first * (descent.finds // descent.units)

    def one_step(state, key):
        prompts = batch_of(key, state, task, descent, lesson=lesson, first=first, run_key=run_key)
        loss_key = jax.random.fold_in(key, 2)
        learnt = () if state.learnt is None else (state.learnt,)
        slope = jax.value_and_grad(lesson.loss.value, 1, has_aux=lesson.loss.kept > 0)
        told, gradients = slope(loss_key, state.model, task, prompts, *learnt)
        loss, after = told if lesson.loss.kept else (told, state.learnt)
        updates, optimizer_state = update(gradients, state.optimizer, state.model)
        model = optax.apply_updates(state.model, updates)
        return state._replace(model=model, optimizer=optimizer_state, step=state.step + 1, learnt=after), loss

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
        rows = selection.order(jax.random.fold_in(key, room + 2), candidates, state.pool, held)
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


Programs = dict[bool, partial]
"""What does a unit that attacks (True), and one that trains (False): `(key, state, unit) -> (state, row)`."""


def programs(task: Task, schedule: Schedule, attack: Attack | Source | None, defence: Defence = USUAL) -> Programs:
    """What does the units of a run.

    Each is given only its part of schedule and defence, so arms that are alike in a part share what is compiled.

    Raises:
      ValueError: there are rounds and no attack, the parts of the defence's batches do not fit, or it selects among the
        finds of a source.
    """
    refuse_unfit(schedule, defence)
    if schedule.rounds and attack is None:
        raise ValueError(f"{schedule.rounds} rounds need an attack; choose one or set rounds to 0")
    trains = partial(train_unit, task=task, rates=schedule.rates, descent=schedule.descent, lesson=defence.lesson)
    if not isinstance(attack, Source):
        finds = partial(attack_unit, attack=attack, selection=defence.selection)
    elif defence.selection == Selection():
        finds = partial(ask_unit, source=attack)
    else:
        raise ValueError(f"{attack.name} gives no more finds than there is room for; keep the usual selection of finds")
    return {False: trains, True: partial(finds, task=task, search=schedule.search)}


def forget() -> None:
    """Forget what was compiled to train and to attack while training; all else stays."""
    for program in (train_unit, attack_unit):
        program.clear_cache()
