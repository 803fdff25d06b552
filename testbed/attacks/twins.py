"""Safe twins: harmless prompts a few edits from hazardous ones, so that only the danger tells them apart."""

import jax
import jax.numpy as jnp

from testbed.attacks.moves import anything, edit
from testbed.task import Task, is_safe

TRIES = 64  # edits that are judged to find one
EDITS = 3  # tokens that such an edit changes at most


def safe_twin(key: jax.Array, task: Task, prompt: jax.Array, tries: int = TRIES, *, edits: int = EDITS) -> jax.Array:
    """The safe prompt `[T]` nearest to `prompt` `[T]` among `tries` random edits of up to `edits` tokens.

    The prompt itself if none of them is safe. Trained on beside it, a twin teaches what makes the difference, and that
    looking attacked is not it.
    """
    keys = jax.random.split(key, tries)
    near = jax.vmap(lambda key: edit(key, prompt, anything(jnp.asarray(task.allowed), prompt), edits))(keys)
    safe = jax.vmap(lambda prompt: is_safe(task, prompt))(near)
    distance = jnp.where(safe, (near != prompt).sum(axis=1), len(prompt) + 1)
    return jnp.where(safe.any(), near[distance.argmin()], prompt)


def with_twins(key: jax.Array, task: Task, finds: jax.Array, usable: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Finds `[n, T]` with the safe twin of each behind it `[2n, T]`, and which of them may be trained on `[2n]`.

    `usable` `[n]` says it of the finds. A twin may be where its find may, unless no edit of it was safe.
    """
    twins = jax.vmap(lambda key, prompt: safe_twin(key, task, prompt))(jax.random.split(key, len(finds)), finds)
    safe = jax.vmap(lambda prompt: is_safe(task, prompt))(twins)
    both, kept = jnp.stack([finds, twins], axis=1), jnp.stack([usable, usable & safe], axis=1)
    return both.reshape(-1, finds.shape[1]), kept.reshape(-1)
