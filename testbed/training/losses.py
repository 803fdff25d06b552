"""Losses: what a training step descends, and its price."""

from collections.abc import Callable
from fractions import Fraction
from functools import partial
from typing import Any, NamedTuple

import jax
import optax

from testbed.batch import batch_logits
from testbed.task import Task, transcript_of

WEIGHT = 0.5  # of what is relaxed, in a loss that is partly clean


class Study(NamedTuple):
    """What a loss learns before the run, and its price.

    Attributes:
      learn: `(key, task) -> learnt`, which each call of the loss is then given.
      labels: prompts whose labels it learns from.
      gradients: gradients that it takes, in all.
    """

    learn: Callable[[jax.Array, Task], Any]
    labels: int
    gradients: int


class Loss(NamedTuple):
    """What a step descends, and its price for each prompt of the batch: a fraction, where not all cost it.

    Attributes:
      value: `(key, model, task, prompts [B, T]) -> loss`, in nats a token; with a `study` also what was learnt.
      gradients: gradients that a step takes, that of the loss included; or `task -> number` where they hang on it.
      forwards: further forward passes.
      checks: verdicts of the checker that an overseer asks for.
      labels: prompts beside those of the batch whose labels are learnt.
      every: for so many prompts of a batch there is one soft prompt.
      kept: soft prompts that are a part of what is learnt; `value` then returns `(loss, learnt)`.
      study: what is learnt before the run, if anything.
      overseen: whether an overseer's verdicts are asked for in each step, beyond labels.
    """

    value: Callable[..., jax.Array]
    gradients: int | Callable[[Task], Fraction] = 1
    forwards: int = 0
    checks: int | Fraction = 0
    labels: int | Fraction = 0
    every: int = 1
    kept: int = 0
    study: Study | None = None
    overseen: bool = False

    def gradients_on(self, task: Task) -> int | Fraction:
        """Gradients that a step takes on a task, for each prompt of the batch."""
        return self.gradients(task) if callable(self.gradients) else self.gradients


def cross_entropy(model, task: Task, prompts: jax.Array, latents: jax.Array | None = None) -> jax.Array:
    """Mean cross-entropy a token of the right transcripts of `prompts` `[B, T]`, in nats.

    `latents` `[B, L + 1, T + N - 1, D]` are added to the residual streams.
    """

    said = jax.vmap(partial(transcript_of, task))(prompts)
    logits = batch_logits(model, jax.nn.one_hot(prompts, task.vocab), said, latents)
    return optax.softmax_cross_entropy_with_integer_labels(logits, said).mean()


def prompt_loss(model, task: Task, prompt: jax.Array, latent: jax.Array | None = None) -> jax.Array:
    """The same of a single prompt `[T]`, for who climbs it prompt by prompt; latent `[L + 1, T + N - 1, D]`."""
    said = transcript_of(task, prompt)
    logits = model(jax.nn.one_hot(prompt, task.vocab), said, latent)
    return optax.softmax_cross_entropy_with_integer_labels(logits, said).mean()


def mixed(clean: jax.Array, relaxed: jax.Array, weight: float) -> jax.Array:
    """A relaxed loss: so much of it, and the rest clean."""
    return (1 - weight) * clean + weight * relaxed


PLAIN = Loss(lambda key, model, task, prompts: cross_entropy(model, task, prompts))
