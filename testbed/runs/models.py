"""Saved models: a file of tensors and a file that says what they are, written whole, made once."""

import dataclasses
import hashlib
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
import safetensors.numpy

from testbed.kinds import KINDS, Config, Model, build, kind_of
from testbed.runs.locks import hold
from testbed.runs.results import read_regular, write_atomically

USUAL = "transformer"  # what a file is of that says no kind
LARGEST_JSON = 2**20  # bytes
UNREADABLE = (OSError, AttributeError, KeyError, TypeError, ValueError, RecursionError)
UNREADABLE += (safetensors.SafetensorError,)


def _tensors(model: Model) -> dict[str, Any]:
    leaves = jax.tree_util.tree_leaves_with_path(model)
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}


def _digest(tensors: dict[str, np.ndarray]) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tensor.shape}\n".encode() + tensor.tobytes())
    return digest.hexdigest()[:16]


def _config_digest(config: Config) -> str:
    """A digest of sizes: the number of heads shows in no tensor's shape."""
    text = json.dumps(dataclasses.asdict(config), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def digest_of(model: Model) -> str:
    """A digest of a model's tensors: their names, types, shapes and bytes."""
    return _digest(jax.device_get(_tensors(model)))


def save(path: str | Path, model: Model, **notes) -> None:
    """Write `path.safetensors` (the tensors) and `path.json` (config, digests and `notes`, and the kind of a machine).

    Notes are what JSON can hold. The JSON is written last, so a model whose JSON exists is whole.
    """
    path = Path(path)
    tensors = jax.device_get(_tensors(model))
    write_atomically(path.with_name(path.name + ".safetensors"), safetensors.numpy.save(tensors))
    config = dataclasses.asdict(model.config)
    digests = {"digest": _digest(tensors), "config_digest": _config_digest(model.config)}
    kind = kind_of(model.config)
    text = json.dumps(
        ({} if kind == USUAL else {"kind": kind}) | {"config": config} | digests | {"notes": notes}, indent=1
    )
    write_atomically(path.with_name(path.name + ".json"), text.encode())


def load_or_make(
    path: str | Path, make: Callable[[], tuple[Model, dict]], waiting: Callable[[], None] = lambda: None
) -> tuple[Model, dict]:
    """The model saved at `path` with its notes; if there is none, what `make` returns, saved for the next caller.

    Of callers that want the same model at once, in any threads and processes, one makes it; the others wait, and call
    `waiting` while they do.
    """
    make_missing([Path(path)], lambda: [make()], waiting)
    return load(path), notes(path)


def make_missing(
    paths: Sequence[Path], make: Callable[[], Sequence[tuple[Model, dict]]], waiting: Callable[[], None] = lambda: None
) -> None:
    """Make models together, unless all are saved: `make` returns each with its notes, in the order of their paths.

    Who waits and who makes is as in `load_or_make`. What was saved before stays as it is.
    """

    def missing():
        return [path for path in paths if not path.with_name(path.name + ".json").exists()]

    while missing():
        with hold(paths[0]) as held:
            if held and (absent := missing()):
                for path, (model, made) in zip(paths, make(), strict=True):
                    if path in absent and path in missing():  # another may have come meanwhile
                        save(path, model, **made)
        if not held:
            waiting()
            time.sleep(0.1)


def notes(path: str | Path) -> dict[str, Any]:
    """The notes that `save(path, model, **notes)` wrote beside the model.

    Raises:
      ValueError: the file is missing or unreadable.
    """
    path = Path(path)
    try:
        return dict(_document(path)["notes"])
    except UNREADABLE as error:
        raise ValueError(f"{path} is not a saved model (no notes in {path.name}.json): {error}") from error


def _document(path: Path) -> dict[str, Any]:
    return json.loads(read_regular(path.with_name(path.name + ".json"), LARGEST_JSON))


def load(path: str | Path) -> Model:
    """The model that `save(path, model)` wrote.

    Raises:
      ValueError: a file is missing, unreadable or altered, or holds other tensors than the config
        describes, or such as are not finite float32.
    """
    path = Path(path)
    try:
        document = _document(path)
        config = _config_of(document)
        content = read_regular(path.with_name(path.name + ".safetensors"), most=2**63)
        tensors = safetensors.numpy.load(content)
    except UNREADABLE as error:
        expected = f"expected {path.name}.json and .safetensors"
        raise ValueError(f"{path} is not a saved model ({expected}): {error}") from error
    blank = jax.eval_shape(lambda: build(jax.random.key(0), config))
    shapes = {name: leaf.shape for name, leaf in _tensors(blank).items()}
    if shapes != {name: tensor.shape for name, tensor in tensors.items()}:
        raise ValueError(f"{path}.safetensors does not fit its config {config}; save the model again")
    _refuse_unsound(path, tensors, document.get("digest"))
    if document.get("config_digest", _config_digest(config)) != _config_digest(config):
        raise ValueError(f"{path}.json: the config was altered since it was saved; {_anew(path)}")
    leaves = [jnp.asarray(tensors[name]) for name in shapes]
    return jax.tree.unflatten(jax.tree.structure(blank), leaves)


def _config_of(document: dict[str, Any]) -> Config:
    kind = document.get("kind", USUAL)
    if kind not in KINDS:
        raise ValueError(f"unknown kind {kind!r}; there are {', '.join(KINDS)}")
    return KINDS[kind].config(**document["config"])


def _refuse_unsound(path: Path, tensors: dict[str, np.ndarray], digest: str | None) -> None:
    """Refuse tensors that are not float32, not those that were saved, or not finite.

    Of a model that was saved before there were digests, `digest` is None.
    """
    dtypes = {str(tensor.dtype) for tensor in tensors.values()}
    broken = sum(int((~np.isfinite(tensor)).sum()) for tensor in tensors.values())
    if dtypes != {"float32"}:
        kinds = ", ".join(sorted(dtypes))
        raise ValueError(f"{path}.safetensors holds {kinds}; save the model again in float32")
    if digest is not None and digest != _digest(tensors):
        raise ValueError(f"{path}.safetensors was altered since it was saved; {_anew(path)}")
    if broken:
        raise ValueError(f"{path}.safetensors holds {broken:,} numbers that are not finite; {_anew(path)}")


def _anew(path: Path) -> str:
    return f"delete {path.name}.json and .safetensors, and make the model again"
