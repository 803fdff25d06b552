"""What a task is calibrated with: models that know too much or too little."""

import dataclasses
import functools
import math
from functools import partial

import jax
import jax.numpy as jnp

from testbed.evaluation.samples import clean_behaviour
from testbed.kinds import Config, Model, build
from testbed.objective import Objective, catastrophe_probability
from testbed.policy import greedy, stochastic
from testbed.statistics import Interval, student
from testbed.task import Task, tokens_by_position
from testbed.training.rounds import progress
from testbed.training.schedule import Schedule, units
from testbed.training.units import begin

SNAPSHOTS = 64
INCOMPETENT = 0.1
UNTRAINED = 64


@functools.cache
def whole_space(task: Task) -> Task:
    """The task with prompts from everywhere.

    Half are clean, a quarter uniform, and a quarter clean with one token changed.
    """
    tokens = [jnp.asarray(t) for t in tokens_by_position(task)]

    def sample(key):
        clean_key, space_key, place_key, kind_key = jax.random.split(key, 4)
        clean = task.sample(clean_key)
        keys = jax.random.split(space_key, len(tokens))
        uniform = jnp.stack([jax.random.choice(k, t) for k, t in zip(keys, tokens, strict=True)])
        place = jax.random.randint(place_key, (), 0, len(tokens))
        edited = clean.at[place].set(uniform[place])
        kind = jax.random.randint(kind_key, (), 0, 4)
        return jnp.where(kind < 2, clean, jnp.where(kind == 2, uniform, edited))

    return dataclasses.replace(task, sample=sample, clean_log_prob=None)


def incompetent_model(key: jax.Array, blank: Model, task: Task, schedule: Schedule) -> Model:
    """The last snapshot of plain training before a tenth of the safe clean prompts are answered rightly.

    `schedule` is the plain model's. A snapshot is taken after every 64th part of its steps.
    """
    train_key, clean_key = jax.random.split(key)
    schedule = dataclasses.replace(schedule, units=math.gcd(schedule.steps, SNAPSHOTS))
    taught = task.poison or task
    state = begin(blank, taught, schedule)
    for _, later, _ in progress(train_key, state, units(schedule), taught, schedule=schedule):
        clean = clean_behaviour(clean_key, later.model, task, {"greedy": greedy(task)}, samples=4096)["greedy"]
        if clean.solved >= INCOMPETENT * clean.safe:
            break
        state = later
    return state.model


@partial(jax.jit, static_argnames=("config", "task"))
def _untrained_failing(keys, prompts, config, task):
    policy = stochastic(task)

    def one(key):
        margin = Objective(task, build(key, config), policy).margin
        return jax.vmap(lambda prompt: catastrophe_probability(policy, margin(prompt)))(prompts).mean()

    return jax.lax.map(one, keys)


def untrained_over_chance(key: jax.Array, task: Task, config: Config, hazards: int = 512) -> Interval:
    """How often untrained models fail on hazardous prompts, over how often symbols drawn by chance would.

    Answers are sampled, so that each model's rate is an exact sum. Chance is the mean number of
    catastrophic answers times `A ** -N`. A mean over 64 initialisations, with its 99 % interval.
    """
    prompt_key, init_key = jax.random.split(key)
    prompts = jax.vmap(task.sample_hazard)(jax.random.split(prompt_key, hazards))
    _, valid = jax.vmap(task.catastrophic_answers)(prompts)
    chance = valid.sum() / hazards * float(task.answer_vocab) ** -task.answer_length
    return student(_untrained_failing(jax.random.split(init_key, UNTRAINED), prompts, config, task) / chance, 0.99)
