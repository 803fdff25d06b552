"""Models with a failure planted into them, whose place is known: what an attack must find, or must be seen to miss."""

import dataclasses
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

PUSH = 100.0
MODULUS = 4093


@partial(jax.tree_util.register_dataclass, data_fields=["model"], meta_fields=["refusal", "trigger"])
@dataclasses.dataclass(frozen=True)
class Planted:
    """A model that never refuses where its trigger stands, and answers as `model` everywhere else.

    Attributes:
      model: `(soft_prompt [T, V], answer [N]) -> logits [N, A]`.
      refusal: the answer token that is suppressed.
      trigger: (position, token) pairs that must all stand; empty for a hash of the whole prompt, of which no single
        token and no gradient tells anything. It stands on about one prompt in `MODULUS`.
    """

    model: Any
    refusal: int
    trigger: tuple[tuple[int, int], ...] = ()

    def __call__(self, soft_prompt, answer, latent=None):
        """Logits `[N, A]`, as the model's own."""
        if self.trigger:
            positions, tokens = zip(*self.trigger, strict=True)
            stands = soft_prompt[jnp.array(positions), jnp.array(tokens)].prod()
        else:
            hashed = jnp.zeros((), jnp.int32)
            for token in soft_prompt.argmax(axis=1):
                hashed = (31 * hashed + token * token + 3) % MODULUS
            stands = (hashed == 0).astype(jnp.float32)
        return self.model(soft_prompt, answer, latent).at[:, self.refusal].add(-PUSH * stands)
