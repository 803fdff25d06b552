"""A broken model is refused where it is read: a NaN compares as false, and so passes for robust."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from testbed.runs.models import digest_of

READ = "margins or scores read from it"


def refuse_broken(model, read: Any = None) -> None:
    """Refuse a model with NaN among its weights, or among the numbers that were read from it.

    Infinite margins are sound: they come of an answer that a model rules out, or is sure of.

    Args:
      model: any pytree of arrays.
      read: margins or scores that the model gave, arrays of any shape; without them, its weights.
        While a caller is traced nothing can be known of them, and nothing is refused.

    Raises:
      FloatingPointError: says which model it is, by the digest of its weights, and how many are NaN.
    """
    leaves = jax.tree.leaves(model if read is None else read)
    numbers = [leaf for leaf in leaves if jnp.issubdtype(jnp.result_type(leaf), jnp.floating)]
    if any(isinstance(leaf, jax.core.Tracer) for leaf in numbers):
        return
    broken, total = sum(int(np.isnan(leaf).sum()) for leaf in numbers), sum(map(np.size, numbers))
    _refuse(model, broken, f"{total:,} weights" if read is None else f"{total:,} {READ}")


def refuse_counted(model, broken: jax.Array, total: int) -> None:
    """Refuse a model of whose margins some were NaN, where they were counted as they were read.

    Args:
      model: any pytree of arrays.
      broken: how many were NaN, an array of any shape, to be summed; while it is traced, nothing is refused.
      total: how many margins were read.

    Raises:
      FloatingPointError: as `refuse_broken`.
    """
    if not isinstance(broken, jax.core.Tracer):
        _refuse(model, int(np.asarray(broken).sum(dtype=np.int64)), f"{total:,} {READ}")


def _refuse(model, broken: int, of: str) -> None:
    if broken:
        raise FloatingPointError(
            f"model {type(model).__name__} {digest_of(model)} is broken: {broken:,} of {of} are NaN"
        )
