"""Checkpoints: a long computation's state on disk, so that a process that is killed loses a minute, not hours.

A checkpoint carries the identity of the computation that it belongs to; for any other it does not exist.
"""

import contextlib
import hashlib
import io
import os
import time
import zipfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jaxlib
import numpy as np

from testbed.runs import provenance
from testbed.runs.results import read_regular, write_atomically

EVERY = 60.0  # seconds between two
# What reading raises of a file that is none, or no whole one.
NO_CHECKPOINT = (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error)


def identity(programs: Sequence[jax.stages.Lowered], *inputs: Any) -> str:
    """What a computation is: its programs, its inputs (any pytrees of arrays and keys), compiler, device and processor.

    Two computations of one identity have the same results, bit for bit, and a change of code that changes a number
    changes the program: so neither an edit nor another task, attack or loss can take over a state that is not its own.
    """
    digest = hashlib.sha256("".join(program.as_text() for program in programs).encode())
    for leaf in jax.tree.leaves(inputs):
        array = _array(leaf)
        digest.update(f"{array.dtype} {array.shape}".encode() + array.tobytes())
    # All CPUs are of one `device_kind`, and yet round otherwise.
    of = jax.devices()[0].device_kind, provenance.processor(), os.environ.get("NPROC")
    return f"{digest.hexdigest()} jaxlib {jaxlib.__version__} {' '.join(map(str, of))}"


def _is_key(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array) and jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def _bits(key: jax.Array) -> np.ndarray:
    return np.asarray(jax.random.key_data(key))


def _from_bits(bits: np.ndarray, like_key: jax.Array) -> jax.Array:
    return jax.random.wrap_key_data(bits, impl=jax.random.key_impl(like_key))


def _array(leaf: Any) -> np.ndarray:
    if isinstance(leaf, bytes):
        return np.frombuffer(leaf, np.uint8)
    return _bits(leaf) if _is_key(leaf) else np.asarray(leaf)


def _leaf(array: np.ndarray, like: Any) -> Any:
    """A saved leaf as what `like` is: a key, bytes, a JAX array, a numpy array or a Python number."""
    if _is_key(like):
        return _from_bits(array, like)
    if isinstance(like, bytes):
        return array.tobytes()
    if isinstance(like, jax.Array):
        return jax.numpy.asarray(array)
    return array.item() if isinstance(like, bool | int | float) else array[()]


def save(path: Path, name: str, tree: Any) -> None:
    """Write a pytree of arrays, keys, numbers and bytes under the identity `name`, whole or not at all.

    Raises:
      OSError: it cannot be written; what was there is still there.
    """
    data = io.BytesIO()
    np.savez(data, identity=np.array(name), **{f"leaf{i}": _array(x) for i, x in enumerate(jax.tree.leaves(tree))})
    write_atomically(path, data.getvalue())


def load(path: Path, name: str, like: Any) -> Any | None:
    """The pytree saved at `path` under the identity `name`, in the structure of `like`.

    Arrays have the shapes that they have in `like`; bytes may have any length.

    Returns:
      None if there is no such file, or it is of another identity or of other shapes.

    Raises:
      ValueError: the file is no checkpoint, or a damaged one. It may be somebody's own.
    """
    leaves, structure = jax.tree.flatten(like)
    try:
        with np.load(io.BytesIO(read_regular(path, most=2**63)), allow_pickle=False) as file:
            if str(file["identity"]) != name:
                return None
            saved = [file[f"leaf{i}"] for i in range(len(file.files) - 1)]
    except FileNotFoundError:
        return None
    except NO_CHECKPOINT as error:
        raise ValueError(f"{path} is no checkpoint; delete it or choose another path") from error
    if len(saved) != len(leaves) or not all(map(_fits, saved, leaves)):
        return None
    return jax.tree.unflatten(structure, list(map(_leaf, saved, leaves)))


def _fits(array: np.ndarray, like: Any) -> bool:
    wanted = _array(like)
    return array.dtype == wanted.dtype and (array.shape == wanted.shape or isinstance(like, bytes))


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
        saved = None
        if path.exists():
            # What is damaged does not count: the folder of checkpoints is the sweep's own.
            with contextlib.suppress(ValueError):
                saved = load(path, name(), state)
        return state if saved is None else saved

    def keep(state):
        nonlocal last
        if time.monotonic() - last >= EVERY:
            save(path, name(), state)
            last = time.monotonic()

    return Keeper(resume, keep)
