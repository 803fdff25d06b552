"""Checkpoints: a long computation's state on disk, so that a process that is killed loses a minute, not hours.

A checkpoint carries the identity of the computation that it belongs to; for any other it does not exist.
"""

import hashlib
import io
import time
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jaxlib
import numpy as np

from testbed.runs.results import write_atomically

EVERY = 60.0  # seconds between two


def identity(programs: Sequence[jax.stages.Lowered], *inputs: Any) -> str:
    """What a computation is: its programs, its inputs (any pytrees of arrays and keys), the compiler and the device.

    Two computations of one identity have the same results, bit for bit, and a change of code that changes a number
    changes the program: so neither an edit nor another task, attack or loss can take over a state that is not its own.
    """
    digest = hashlib.sha256("".join(program.as_text() for program in programs).encode())
    for leaf in jax.tree.leaves(inputs):
        array = _array(leaf)
        digest.update(f"{array.dtype} {array.shape}".encode() + array.tobytes())
    return f"{digest.hexdigest()} jaxlib {jaxlib.__version__} {jax.devices()[0].device_kind}"


def _is_key(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array) and jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _bits(key: jax.Array) -> np.ndarray:
    return np.asarray(jax.random.key_data(key))


def _from_bits(bits: np.ndarray, like_key: jax.Array) -> jax.Array:
    return jax.random.wrap_key_data(bits, impl=jax.random.key_impl(like_key))


def _array(leaf: Any) -> np.ndarray:
    return _bits(leaf) if _is_key(leaf) else np.asarray(leaf)


def _leaf(array: np.ndarray, like: Any) -> Any:
    """A saved leaf as what `like` is: a key, a JAX array, a numpy array or a Python number."""
    if _is_key(like):
        return _from_bits(array, like)
    if isinstance(like, jax.Array):
        return jax.numpy.asarray(array)
    return array.item() if isinstance(like, bool | int | float) else array[()]


def save(path: Path, name: str, tree: Any) -> None:
    """Write a pytree of arrays, keys and numbers under the identity `name`, whole or not at all, over an older one.

    Raises:
      OSError: it cannot be written; what was there is still there.
    """
    data = io.BytesIO()
    np.savez(data, identity=np.array(name), **{f"leaf{i}": _array(x) for i, x in enumerate(jax.tree.leaves(tree))})
    write_atomically(path, data.getvalue())


def load(path: Path, name: str, like: Any) -> Any | None:
    """The pytree saved at `path` under the identity `name`, in the structure of `like`.

    None if there is no such file, or it is damaged, of another identity, or of other shapes.
    """
    leaves, structure = jax.tree.flatten(like)
    try:
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as file:
            if str(file["identity"]) != name:
                return None
            saved = [file[f"leaf{i}"] for i in range(len(leaves))]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
    pairs = list(zip(saved, leaves, strict=True))
    if any((array.shape, array.dtype) != (_array(leaf).shape, _array(leaf).dtype) for array, leaf in pairs):
        return None
    return jax.tree.unflatten(structure, [_leaf(array, leaf) for array, leaf in pairs])


class Keeper(NamedTuple):
    """How a loop keeps its state: `resume(state) -> state` before it, `keep(state)` after each of its steps."""

    resume: Callable[[Any], Any]
    keep: Callable[[Any], None]


def keeper(path: Path | None, name: Callable[[], str]) -> Keeper:
    """Keep a state at `path`, at most once in `EVERY` seconds; with None as path, keep nothing.

    `name()` is the computation's identity; it is asked for only when a file is there to be read, or to be written, so a
    short computation pays for nothing.
    """
    if path is None:
        return Keeper(lambda state: state, lambda state: None)
    last = time.monotonic()

    def resume(state):
        saved = load(path, name(), state) if path.exists() else None
        return state if saved is None else saved

    def keep(state):
        nonlocal last
        if time.monotonic() - last >= EVERY:
            save(path, name(), state)
            last = time.monotonic()

    return Keeper(resume, keep)
