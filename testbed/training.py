"""Training: supervised steps, and rounds of attack and training under a schedule that keeps compute equal.

The work of a run is cut into equal units: attack units, which find prompts and add them to the pool, and train units.
A schedule only *orders* them: with 16 units of each, one round is AAAA...TTTT..., sixteen rounds are ATATAT... Every
update frequency therefore makes exactly the same attack calls, finds and gradient steps, from the same streams of keys
(unit j draws from `fold_in(key, j)` in every arm), in the same compiled program.
"""

import dataclasses
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from testbed import checkpoint
from testbed.attacks.search import Attack, Cost, attack_model, steps_within
from testbed.objective import Objective
from testbed.policy import greedy
from testbed.task import Task

UNITS_A_CALL = 2


@dataclasses.dataclass(frozen=True)
class Schedule:
    """How gradient steps, finds and attack calls are spread over a run.

    Attributes:
      steps: gradient steps in all.
      rounds: model updates, each one round of attack and training; 0 trains without attacks.
      finds: prompts added to the pool in all. Every attacker contributes its best prompt, failing or not.
      budget: forward-pass equivalents a find.
      batch: prompts a step; half of them from the pool once it holds any.
      learning_rate: the peak of one cosine over the whole run, which ends at zero: otherwise the last iterate's noise
        is what gets measured.
      units: how many equal units the run is cut into; rounds divide them, and they divide steps and finds.

    Raises:
      ValueError: a number is not positive, or does not divide as stated.
    """

    steps: int = 1536
    rounds: int = 0
    finds: int = 0
    budget: int = 0
    batch: int = 256
    learning_rate: float = 2e-3
    units: int = 16

    def __post_init__(self):
        for name in ("steps", "batch", "units"):
            if getattr(self, name) < 1:
                raise ValueError(f"schedule {name} must be at least 1, not {getattr(self, name)}")
        for name in ("rounds", "finds", "budget"):
            if getattr(self, name) < 0:
                raise ValueError(f"schedule {name} must not be negative, not {getattr(self, name)}")
        if self.rounds and not (self.finds and self.budget):
            raise ValueError(f"{self.rounds} rounds need finds and a budget, not {self.finds} and {self.budget}")
        if self.rounds and self.units % self.rounds:
            raise ValueError(f"{self.rounds} rounds must divide the schedule's {self.units} units")
        for name in ("steps", "finds"):
            if getattr(self, name) % self.units:
                raise ValueError(f"schedule {name} {getattr(self, name)} must be a multiple of its {self.units} units")


class Unit(NamedTuple):
    """One unit of work: whether it attacks or trains, and its number among its kind (arrays when there are many)."""

    attacks: np.ndarray
    number: np.ndarray


def units(schedule: Schedule) -> Unit:
    """The order of a run's units, as arrays."""
    numbers = np.arange(schedule.units)
    if not schedule.rounds:
        return Unit(np.zeros(schedule.units, bool), numbers)
    rounds = numbers.reshape(schedule.rounds, -1)
    kinds = np.concatenate([np.ones_like(rounds, bool), np.zeros_like(rounds, bool)], axis=1)
    return Unit(kinds.ravel(), np.concatenate([rounds, rounds], axis=1).ravel())


def attack_cost(schedule: Schedule, attack: Attack, objective: Objective) -> Cost:
    """Calls that all the attack units of a run make, exactly."""
    if not schedule.rounds:
        return Cost(0, 0, 0)
    steps, step = steps_within(attack, objective, schedule.budget), attack.cost(objective)
    once = Cost(objective.forwards, 0, 1)
    return Cost(*(schedule.finds * (start + steps * more) for start, more in zip(once, step, strict=True)))


class State(NamedTuple):
    """A run between two units: model, optimiser, pool `[finds, T]` and how much of it is filled, steps taken."""

    model: Any
    optimizer: Any
    pool: jax.Array
    filled: jax.Array
    step: jax.Array


class History(NamedTuple):
    """What happened: loss of each step `[steps]`, and the share of each attack unit's finds that failed `[units]`."""

    loss: np.ndarray
    found: np.ndarray


def optimizer(schedule: Schedule) -> optax.GradientTransformation:
    """AdamW with clipped gradients, a short warm-up and one cosine to zero."""
    rate = optax.warmup_cosine_decay_schedule(
        0.0, schedule.learning_rate, warmup_steps=min(50, schedule.steps // 2), decay_steps=schedule.steps
    )
    return optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(rate, weight_decay=1e-2))


def cross_entropy(model, task: Task, prompts: jax.Array) -> jax.Array:
    """Mean cross-entropy a token of the right answers to `prompts` `[B, T]`, in nats."""

    def one(prompt):
        answer = task.label(prompt)
        logits = model(jax.nn.one_hot(prompt, task.vocab), answer)
        return optax.softmax_cross_entropy_with_integer_labels(logits, answer).mean()

    return jax.vmap(one)(prompts).mean()


def begin(model, task: Task, schedule: Schedule) -> State:
    """The state before the first unit, with a fresh optimiser and an empty pool."""
    pool = jnp.zeros((schedule.finds, task.prompt_length), jnp.int32)
    zero = jnp.zeros((), jnp.int32)
    return State(model, optimizer(schedule).init(model), pool, zero, zero)


def train_unit(key: jax.Array, state: State, task: Task, schedule: Schedule) -> tuple[State, jax.Array]:
    """Take one unit's gradient steps on fresh clean prompts and the pool; also returns their losses."""
    update = optimizer(schedule).update

    def one_step(state, key):
        clean_key, pool_key = jax.random.split(key)
        prompts = jax.vmap(task.sample)(jax.random.split(clean_key, schedule.batch))
        if len(state.pool):
            rows = jax.random.randint(pool_key, (schedule.batch,), 0, jnp.maximum(state.filled, 1))
            from_pool = (jnp.arange(schedule.batch) < schedule.batch // 2) & (state.filled > 0)
            prompts = jnp.where(from_pool[:, None], state.pool[rows], prompts)
        loss, gradients = jax.value_and_grad(cross_entropy)(state.model, task, prompts)
        updates, optimizer_state = update(gradients, state.optimizer, state.model)
        model = optax.apply_updates(state.model, updates)
        return state._replace(model=model, optimizer=optimizer_state, step=state.step + 1), loss

    return jax.lax.scan(one_step, state, jax.random.split(key, schedule.steps // schedule.units))


def attack_unit(
    key: jax.Array, state: State, task: Task, schedule: Schedule, attack: Attack
) -> tuple[State, jax.Array]:
    """Attack the current model and add what is found to the pool; also returns the share that failed."""
    objective = Objective(task, state.model, greedy(task))
    finds = schedule.finds // schedule.units
    trace = attack_model(attack, objective, key, finds, schedule.budget)
    pool = jax.lax.dynamic_update_slice(state.pool, trace.prompt, (state.filled, 0))
    return state._replace(pool=pool, filled=state.filled + finds), (trace.margin <= 0).mean()


@partial(jax.jit, static_argnames=("task", "schedule", "attack"))
def advance(
    key: jax.Array, state: State, work: Unit, task: Task, schedule: Schedule, attack: Attack | None
) -> tuple[State, tuple[jax.Array, jax.Array]]:
    """Do the units of `work`, in order: a pure function of `key`, compiled as one program, ready for `vmap`.

    `schedule.rounds` is not read: the order of the units says it all, so every update frequency shares the program.

    Returns:
      The new state, and a row a unit: losses `[units, steps]` (NaN in attack units), shares that failed `[units]`
      (NaN in train units).
    """
    attack_key, train_key = jax.random.split(key)
    no_loss = jnp.full(schedule.steps // schedule.units, jnp.nan)

    def train(state, number):
        state, losses = train_unit(jax.random.fold_in(train_key, number), state, task, schedule)
        return state, (losses, jnp.nan)

    def find(state, number):
        state, found = attack_unit(jax.random.fold_in(attack_key, number), state, task, schedule, attack)
        return state, (no_loss, found)

    def one_unit(state, unit):
        if attack is None:
            return train(state, unit.number)
        return jax.lax.cond(unit.attacks, find, train, state, unit.number)

    return jax.lax.scan(one_unit, state, work)


def train(
    key: jax.Array,
    model,
    task: Task,
    schedule: Schedule,
    attack: Attack | None = None,
    watch: Callable[[int, int], None] = lambda done, total: None,
    kept: Path | None = None,
) -> tuple[Any, History]:
    """Train `model` on `task` under `schedule`; with rounds, adversarially against `attack`.

    `watch(units done, units in all)` is called from the host every few units; it changes no number. A long run keeps
    its state in the file `kept` between units, and the same run goes on from there, with the same result bit for bit.

    Raises:
      ValueError: the schedule has rounds but no attack is given.
      FloatingPointError: the loss became NaN or infinite; says at which step.
    """
    if schedule.rounds and attack is None:
        raise ValueError(f"{schedule.rounds} rounds need an attack; choose one or set rounds to 0")
    work = units(schedule)
    program = dataclasses.replace(schedule, rounds=0)
    start, total = begin(model, task, schedule), len(work.number)
    parts = [Unit(*(a[first : first + UNITS_A_CALL] for a in work)) for first in range(0, total, UNITS_A_CALL)]
    lowered = lambda: advance.lower(key, start, parts[0], task, program, attack)
    resume, keep = checkpoint.keeper(kept, cache(lambda: checkpoint.identity(lowered(), key, model, work)))
    nothing = np.full((total, schedule.steps // schedule.units), np.nan, np.float32), np.full(total, np.nan, np.float32)
    done, state, losses, found = resume((0, start, *nothing))
    watch(done, total)
    for part in parts[done // UNITS_A_CALL :]:
        state, row = advance(key, state, part, task, program, attack)
        now = slice(done, done + len(part.number))
        losses[now], found[now] = jax.device_get(row)
        _refuse_nan(losses[now][~part.attacks], part.number[~part.attacks], schedule)
        done = now.stop
        keep((done, state, losses, found))
        watch(done, total)
    return state.model, History(losses[~work.attacks].ravel(), found[work.attacks])


def _refuse_nan(losses, numbers, schedule):
    broken = ~np.isfinite(losses)
    if broken.any():
        unit, step = np.argwhere(broken)[0]
        at = int(numbers[unit]) * (schedule.steps // schedule.units) + int(step)
        raise FloatingPointError(
            f"the loss became {losses[unit, step]} at step {at} of {schedule.steps}; "
            f"lower the learning rate ({schedule.learning_rate}) or check the task's labels"
        )
