"""Saved models: a file of tensors and a file that says what they are, written whole, made once."""

import dataclasses
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import safetensors
import safetensors.numpy

from testbed.model import ModelConfig, Transformer
from testbed.runs.locks import claim
from testbed.runs.results import write_atomically


def _tensors(model: Transformer) -> dict[str, jax.Array]:
    leaves = jax.tree_util.tree_leaves_with_path(model)
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}


def save(path: str | Path, model: Transformer, **notes) -> None:
    """Write `path.safetensors` (the tensors) and `path.json` (the config, and `notes` that JSON can hold).

    The JSON is written last, so a model whose JSON exists is whole.
    """
    path = Path(path)
    tensors = {name: jax.device_get(leaf) for name, leaf in _tensors(model).items()}
    write_atomically(path.with_name(path.name + ".safetensors"), safetensors.numpy.save(tensors))
    text = json.dumps({"config": dataclasses.asdict(model.config), "notes": notes}, indent=1)
    write_atomically(path.with_name(path.name + ".json"), text.encode())


def load_or_make(
    path: str | Path, make: Callable[[], tuple[Transformer, dict]], waiting: Callable[[], None] = lambda: None
) -> tuple[Transformer, dict]:
    """The model saved at `path` with its notes; if there is none, what `make` returns, saved for the next caller.

    Of callers that want the same model at once, in any threads and processes, one makes it; the others wait, and call
    `waiting` while they do.
    """
    path = Path(path)
    there = path.with_name(path.name + ".json")
    while not there.exists():
        with claim(path) as ours:
            if ours and not there.exists():
                model, told = make()
                save(path, model, **told)
        if not ours:
            waiting()
            time.sleep(0.1)
    return load(path), notes(path)


def notes(path: str | Path) -> dict[str, Any]:
    """The notes that `save(path, model, **notes)` wrote beside the model.

    Raises:
      ValueError: the file is missing or unreadable.
    """
    path = Path(path)
    try:
        return dict(json.loads(path.with_name(path.name + ".json").read_text())["notes"])
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is not a saved model (no notes in {path.name}.json): {error}") from error


def load(path: str | Path) -> Transformer:
    """The model that `save(path, model)` wrote.

    Raises:
      ValueError: a file is missing, unreadable, or holds other tensors than the config describes.
    """
    path = Path(path)
    try:
        config = ModelConfig(**json.loads(path.with_name(path.name + ".json").read_text())["config"])
        tensors = safetensors.numpy.load_file(path.with_name(path.name + ".safetensors"))
    except (OSError, KeyError, TypeError, json.JSONDecodeError, safetensors.SafetensorError) as error:
        raise ValueError(
            f"{path} is not a saved model (expected {path.name}.json and .safetensors): {error}"
        ) from error
    blank = jax.eval_shape(lambda: Transformer(config, jax.random.key(0)))
    shapes = {name: leaf.shape for name, leaf in _tensors(blank).items()}
    if shapes != {name: tensor.shape for name, tensor in tensors.items()}:
        raise ValueError(f"{path}.safetensors does not fit its config {config}; save the model again")
    return jax.tree.unflatten(jax.tree.structure(blank), [jnp.asarray(tensors[name]) for name in shapes])
