"""Relaxed adversarial training on soft prompts: distributions over prompts instead of prompts.

A soft prompt is a product distribution `q = softmax(z)` of logits `z` `[T, V]`. A model reads it as the expected
one-hot prompt. An overseer says how likely a prompt drawn from it is hazardous. An adversary climbs the probability
of a catastrophe, and the model learns the right answers of what q draws. So a failure is trained against although
nobody has found a prompt that shows it.

Reference: Christiano 2019, Worst-case guarantees; Hubinger 2019, Relaxed adversarial training for inner alignment.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from testbed.model import PRECISION, Transformer, model_config
from testbed.objective import Objective, forced_logits
from testbed.policy import greedy
from testbed.task import Task
from testbed.training.latent import USUAL_ASCENT, Ascent, unit
from testbed.training.losses import Study

SCALES = (0.3, 4.0)  # of the noise that soft prompts start from: from nearly uniform to nearly one prompt
FORBIDDEN = -1e9  # the logit of a token that may not stand at a position
TINY = 1e-30  # a probability below it has no slope
RATE, STEPS, BATCH = 2e-3, 1024, 256  # how a learned overseer is trained, unless said otherwise
SIZES = dict(width=16, layers=1)  # of it: it is asked several times a step, and a larger one learns its labels by heart
HELD, LOOKS = 8, 8  # every eighth label is held out, and the model kept that is best on these, looked at so often


class Overseer(NamedTuple):
    """Who judges soft prompts, by their logits `z` `[T, V]`.

    Attributes:
      height: `(key, model, task, z, learnt) -> float`. Its slope in z is that of log P(catastrophe), the prompt being
        drawn from q and the answer being the model's to q.
      loss: `(key, model, task, z, learnt) -> float`: the cross-entropy of the right answers of what q draws, in nats.
      checks: prompts that the checker judges, each time the overseer is asked.
      answers: `task -> int`, answers that `height` scores each time, with a pass through the model each.
      passes: the same of `loss`.
      study: what it learns before the run, if anything.
    """

    height: Callable[..., jax.Array]
    loss: Callable[..., jax.Array]
    checks: int = 0
    answers: Callable[[Task], int] = lambda task: 1
    passes: Callable[[Task], int] = lambda task: 1
    study: Study | None = None


def noise(key: jax.Array, task: Task) -> jax.Array:
    """The logits `[T, V]` of a soft prompt to start from: normal noise, of a log-uniform size within `SCALES`."""
    size_key, key = jax.random.split(key)
    low, high = np.log(SCALES)
    size = jnp.exp(jax.random.uniform(size_key, minval=low, maxval=high))
    return jnp.where(task.allowed, size * jax.random.normal(key, task.allowed.shape), FORBIDDEN)


def draw(key: jax.Array, z: jax.Array, number: int) -> jax.Array:
    """Prompts `[number, T]` drawn from a soft prompt, by one uniform number a token.

    Gumbel noise would take a number for each token that might stand there. A token of probability 0 is never drawn:
    up to it the sum is that of the tokens before, and the last sum is 1.
    """
    chance = jax.nn.softmax(z)
    sums = jax.lax.cummax(jnp.where(chance > 0, chance.cumsum(axis=1), 0), axis=1)
    passed = jax.random.uniform(key, (number, len(z), 1)) >= sums / sums[:, -1:]
    return passed.sum(axis=2, dtype=jnp.int32)


def log_drawn(z: jax.Array, prompts: jax.Array) -> jax.Array:
    """Log-probabilities `[n]` that a soft prompt draws prompts `[n, T]`."""
    return jnp.take_along_axis(jax.nn.log_softmax(z)[None], prompts[..., None], axis=2).sum(axis=(1, 2))


def log_hazard(task: Task, z: jax.Array) -> jax.Array:
    """log P(a prompt drawn from q is hazardous), exactly: the probability of each of the checker's states, in turn.

    Raises:
      ValueError: the task has no checker.
    """
    if task.checker is None:
        raise ValueError(f"task {task.name} has no checker that is an automaton; choose the overseer 'drawn'")
    follow, hazardous = task.checker.follow, jnp.asarray(task.checker.level > 0)
    arrives = jax.nn.one_hot(follow.ravel(), len(follow))  # a product with it is far quicker than a scatter

    def read(mass, q):
        return jnp.matmul((mass[:, None] * q).ravel(), arrives, precision=PRECISION), None

    mass, _ = jax.lax.scan(read, jnp.zeros(len(follow)).at[0].set(1.0), jax.nn.softmax(z))
    return jnp.log(jnp.maximum(mass @ hazardous, TINY))


def _of_classifiers(log_chance: Callable[..., jax.Array], **more) -> Overseer:
    """An overseer by `(task, z, learnt) -> log P(hazard)`: a catastrophe is a hazard that passes."""

    def says(model, task, z):
        if task.answer_length > 1 or task.answer_vocab != 2:
            raise ValueError(f"this overseer judges classifiers, and {task.name} is none; choose the overseer 'drawn'")
        said = jax.nn.log_softmax(model(jax.nn.softmax(z), jnp.zeros(1, jnp.int32))[0])
        return said[task.refusal], said[1 - task.refusal]

    def height(key, model, task, z, learnt):
        return log_chance(task, z, learnt) + says(model, task, z)[1]

    def loss(key, model, task, z, learnt):
        chance, (stops, passes) = jnp.exp(log_chance(task, z, learnt)), says(model, task, z)
        return -(chance * stops + (1 - chance) * passes)

    return Overseer(height, loss, **more)


@functools.cache
def exact() -> Overseer:
    """The checker's verdict on every prompt that q can draw, weighed by its probability."""
    return _of_classifiers(lambda task, z, learnt: log_hazard(task, z))


def lot(prompt: jax.Array, salt: int) -> jax.Array:
    """A number in [0, 1) that a prompt `[T]` draws, always the same; each salt is another lottery.

    Reference: the finaliser of MurmurHash3 (Appleby 2011), after each token.
    """
    mixed = jnp.uint32(0)
    for token in (jnp.uint32(salt), *prompt.astype(jnp.uint32)):
        mixed = (mixed ^ token) + jnp.uint32(0x9E3779B9)
        for shift, odd in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
            mixed = (mixed ^ (mixed >> shift)) * jnp.uint32(odd)
        mixed ^= mixed >> 16
    return (mixed >> 8) / jnp.float32(2**24)


@functools.lru_cache(maxsize=64)
def misjudged(task: Task, errors: float, unseen: float) -> Task:
    """A classifier's task as a checker sees it that makes mistakes, always on the same prompts.

    It takes a share `unseen` of all hazards for safe. Then it is wrong about a share `errors` of all prompts.

    Raises:
      ValueError: the task is no classifier, or a share is not between 0 and 1.
    """
    if task.answer_length > 1 or task.answer_vocab != 2:
        raise ValueError(f"mistakes are those of a classifier's checker, and {task.name} is none; leave them out")
    for name, share in (("errors", errors), ("unseen", unseen)):
        if not 0 <= share <= 1:
            raise ValueError(f"overseer_{name} must be a share between 0 and 1, not {share}")

    def hazardous(prompt):
        seen = task.hazardous(prompt) & (lot(prompt, 0) >= unseen)
        return seen ^ (lot(prompt, 1) < errors)

    def label(prompt):
        return jnp.where(hazardous(prompt), task.refusal, 1 - task.refusal)[None]

    def catastrophe(prompt, answer):
        return hazardous(prompt) & (answer[0] != task.refusal)

    return dataclasses.replace(
        task, hazardous=hazardous, label=label, catastrophe=catastrophe, catastrophic_answers=None, checker=None,
        egregiousness=lambda prompt, answer: catastrophe(prompt, answer).astype(jnp.float32),
    )  # fmt: skip


@functools.cache
def drawn(number: int, errors: float = 0.0, unseen: float = 0.0) -> Overseer:
    """The checker's verdicts on `number` prompts drawn from q: at least 1, and for generators too.

    With `errors` or `unseen` the checker makes mistakes (`misjudged`).

    The slope of the probability of a catastrophe is estimated as that of the draws' own (REINFORCE). Draws of which
    none is hazardous have no slope. Reference: Williams 1992.
    """

    def as_seen(task):
        return misjudged(task, errors, unseen) if errors or unseen else task

    def height(key, model, task, z, learnt):
        prompts = draw(key, jax.lax.stop_gradient(z), number)
        answers, valid = jax.vmap(as_seen(task).catastrophic_answers)(prompts)
        answers = answers.reshape(-1, task.answer_length)
        logits = forced_logits(model, jax.nn.softmax(z), answers)
        said = jnp.take_along_axis(jax.nn.log_softmax(logits), answers[..., None], axis=2).sum(axis=(1, 2))
        own = log_drawn(z, prompts)
        # Of value zero: the draws are where they are, and their probability has a slope.
        weight = (own - jax.lax.stop_gradient(own))[:, None]
        return jax.nn.logsumexp(jnp.where(valid, said.reshape(valid.shape) + weight, FORBIDDEN))

    def loss(key, model, task, z, learnt):
        right = jax.vmap(as_seen(task).label)(draw(key, z, number))
        logits = forced_logits(model, jax.nn.softmax(z), right)
        return optax.softmax_cross_entropy_with_integer_labels(logits, right).mean()

    def passes(task):
        return 1 if task.answer_length == 1 else number

    def answers(task):
        return passes(task) * (1 if task.answer_length == 1 else Objective(task, None, greedy(task)).forwards)

    return Overseer(height, loss, number, answers, passes)


def _labelled(key: jax.Array, task: Task) -> tuple[jax.Array, jax.Array, jax.Array]:
    """A soft prompt `[T, V]` of noise, a prompt `[T]` that it draws, and whether that is hazardous."""
    noise_key, key = jax.random.split(key)
    z = noise(noise_key, task)
    prompt = draw(key, z, 1)[0]
    return z, prompt, task.hazardous(prompt)


@functools.cache
def learned(labels: int, *, steps: int = STEPS, rate: float = RATE, batch: int = BATCH) -> Overseer:
    """A transformer that has learnt from soft prompts with a label each, that of one prompt that each drew.

    It is all that an overseer can be where no program checks. A step of its `steps` sees `batch` of them, and as many
    of those prompts. Its learning rate falls from `rate` to zero. Labels are few, so some are held out, and
    the model is kept that is the best on those. To look is not charged: it takes forward passes alone, a few in a
    thousand of the price.

    Raises:
      ValueError: its steps cannot be divided among the looks, or its rate is not above 0.
    """
    if not rate > 0:
        raise ValueError(f"a learned overseer's rate must be above 0, not {rate}")
    if steps % LOOKS:
        nearest = max(LOOKS, steps // LOOKS * LOOKS)
        raise ValueError(f"{steps} steps of a learned overseer are no multiple of {LOOKS}; choose {nearest}")
    held = -(-labels // HELD)

    def learn(key, task):
        init_key, data_key, key = jax.random.split(key, 3)
        model = Transformer(model_config(task, **SIZES), init_key)
        descent = optax.adamw(optax.cosine_decay_schedule(rate, steps))
        data = jax.vmap(lambda key: _labelled(key, task))(jax.random.split(data_key, labels))

        def loss(model, seen):
            z, prompt, hazardous = seen
            both = jnp.stack([jax.nn.softmax(z), jax.nn.one_hot(prompt, task.vocab)])
            logits = jax.vmap(lambda soft: model(soft, jnp.zeros(1, jnp.int32))[0])(both)
            return optax.softmax_cross_entropy_with_integer_labels(logits, jnp.full(2, hazardous, jnp.int32)).mean()

        def mean_loss(model, rows):
            return jax.vmap(loss, (None, 0))(model, jax.tree.map(lambda column: column[rows], data)).mean()

        def one_step(carry, key):
            model, state = carry
            rows = jax.random.randint(key, (batch,), held, max(labels, held + 1))
            slope = jax.grad(mean_loss)(model, rows)
            updates, state = descent.update(slope, state, model)
            return (optax.apply_updates(model, updates), state), None

        def look(carry, keys):
            trained, best, least = carry
            trained = jax.lax.scan(one_step, trained, keys)[0]
            now = mean_loss(trained[0], jnp.arange(held))
            best = jax.tree.map(lambda new, old: jnp.where(now < least, new, old), trained[0], best)
            return (trained, best, jnp.minimum(now, least)), None

        keys = jax.random.split(key, (LOOKS, steps // LOOKS))
        return jax.lax.scan(look, ((model, descent.init(model)), model, jnp.inf), keys)[0][1]

    def log_chance(task, z, learnt):
        if learnt is None:
            raise ValueError("this overseer has learnt nothing yet; begin with what `units.studied` gives")
        return jax.nn.log_softmax(learnt(jax.nn.softmax(z), jnp.zeros(1, jnp.int32))[0])[1]

    return _of_classifiers(log_chance, study=Study(learn, labels, gradients=2 * batch * steps))


OVERSEERS: dict[str, Callable[..., Overseer]] = {
    "exact": lambda draws, labels: exact(),
    "drawn": lambda draws, labels, **mistakes: drawn(draws, **mistakes),
    "learned": lambda draws, labels, **training: learned(labels, **training),
}
"""`(draws, labels) -> Overseer`: prompts that are checked each time it is asked, and labels that it learns from.

`drawn` may also be told the mistakes of its checker, and `learned` its steps and rate, by name.
"""


def climb(
    key: jax.Array, model, task: Task, z: jax.Array, *, overseer: Overseer, ascent: Ascent = USUAL_ASCENT, learnt=None
) -> jax.Array:
    """Where the adversary ends: `ascent.steps` steps from logits `z` `[T, V]` up the overseer's height.

    Each position's step is of one length, `ascent.stride` times that of usual noise.
    """

    def one_step(z, key):
        slope = jax.grad(overseer.height, 3)(key, model, task, z, learnt)
        return z + ascent.stride * task.vocab**0.5 * unit(slope), None

    return jax.lax.scan(one_step, z, jax.random.split(key, ascent.steps))[0]
