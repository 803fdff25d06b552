"""Losses: what a training step descends, and its price."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import optax

from testbed.task import Task, transcript_of


class Loss(NamedTuple):
    """What a step descends, and its price.

    Attributes:
      value: `(key, model, task, prompts [B, T]) -> loss`, in nats a token.
      gradients: gradients a prompt that a step takes, that of the loss included.
      forwards: further forward passes a prompt.
    """

    value: Callable[[jax.Array, Any, Task, jax.Array], jax.Array]
    gradients: int = 1
    forwards: int = 0


def cross_entropy(model, task: Task, prompts: jax.Array, latents: jax.Array | None = None) -> jax.Array:
    """Mean cross-entropy a token of the right transcripts of `prompts` `[B, T]`, in nats.

    `latents` `[B, L + 1, T + N - 1, D]` are added to the residual streams.
    """

    def one(prompt, latent):
        said = transcript_of(task, prompt)
        logits = model(jax.nn.one_hot(prompt, task.vocab), said, latent)
        return optax.softmax_cross_entropy_with_integer_labels(logits, said).mean()

    return jax.vmap(one)(prompts, latents).mean()


PLAIN = Loss(lambda key, model, task, prompts: cross_entropy(model, task, prompts))
