"""A small causal language model of a task's clean prompts: the generator of a filtered system."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax

from testbed.batch import batch_logits
from testbed.model import ModelConfig, Transformer
from testbed.task import Task
from testbed.training.schedule import Schedule
from testbed.training.units import optimizer

BATCH = 4096


def language_model(key: jax.Array, task: Task, **sizes: int) -> Transformer:
    """A blank model that writes prompts of `task`: its answer is the prompt, after one start token that says nothing.

    Teacher-forced logits are then those of the next token, so that the same Transformer serves.
    """
    return Transformer(ModelConfig(1, 1, task.prompt_length, task.vocab, **sizes), key)


def next_token_loss(model: Transformer, prompts: jax.Array) -> jax.Array:
    """Mean cross-entropy a token of `prompts` `[B, T]`, in nats."""
    logits = batch_logits(model, jnp.ones((len(prompts), 1, 1)), prompts)
    return optax.softmax_cross_entropy_with_integer_labels(logits, prompts).mean()


@partial(jax.jit, static_argnames=("task", "schedule"))
def train_language(key: jax.Array, model: Transformer, task: Task, schedule: Schedule) -> tuple[Transformer, jax.Array]:
    """Train on fresh clean prompts under a schedule without rounds; also returns the loss of each step `[steps]`."""
    make = optimizer(schedule.descent, schedule.rates)

    def step(state, key):
        model, state = state
        prompts = jax.vmap(task.sample)(jax.random.split(key, schedule.batch))
        loss, gradients = jax.value_and_grad(next_token_loss)(model, prompts)
        updates, state = make.update(gradients, state, model)
        return (optax.apply_updates(model, updates), state), loss

    (model, _), losses = jax.lax.scan(step, (model, make.init(model)), jax.random.split(key, schedule.steps))
    return model, losses


@partial(jax.jit, static_argnames=("shape",))
def _next(model: Transformer, ids: jax.Array, shape: tuple[int, int]) -> jax.Array:
    """Next-token log-probabilities `[n, V]` after the prefixes of ranks `ids` `[n]`; `shape`: their length, and T."""
    given, length = shape
    vocab = model.config.answer_vocab

    def one(rank):
        digits = rank // vocab ** jnp.arange(given - 1, -1, -1) % vocab
        prompt = jnp.zeros(length, jnp.int32).at[:given].set(digits)
        return jax.nn.log_softmax(model(jnp.ones((1, 1)), prompt)[given])

    return jax.lax.map(one, ids, batch_size=BATCH)


def completion_log_probs(model: Transformer, given: int) -> np.ndarray:
    """log P(completion | first `given` tokens), exact: `[V ** given, V ** (T - given)]` in lexicographic order.

    Every prefix is read once, V logits at a time; causality makes what follows it irrelevant.

    Raises:
      ValueError: `given` leaves nothing to complete, or nothing to complete from.
    """
    length, vocab = model.config.answer_length, model.config.answer_vocab
    if not 0 < given < length:
        raise ValueError(f"a completion needs 1 to {length - 1} given tokens of {length}, not {given}")
    total = np.zeros((vocab**given, 1), np.float32)
    for place in range(given, length):
        after = np.asarray(_next(model, jnp.arange(vocab**place), (place, length)))
        total = (total[..., None] + after.reshape(*total.shape, vocab)).reshape(len(total), -1)
    return total
