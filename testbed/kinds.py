"""The kinds of models, by name: what a saved model says it is, and what an arm asks for."""

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

import jax

from testbed.machine import Machine, MachineConfig, machine_config
from testbed.model import ModelConfig, Transformer, model_config

Config = ModelConfig | MachineConfig
Model = Transformer | Machine


class Kind(NamedTuple):
    """A kind of model: its sizes, what makes them for a task, and the network of these sizes."""

    config: type[Config]
    config_for: Callable[..., Config]
    model: type[Model]


KINDS = {
    "transformer": Kind(ModelConfig, model_config, Transformer),
    "machine": Kind(MachineConfig, machine_config, Machine),
}


def kind_of(config: Config) -> str:
    """The name of the kind that a config is of."""
    return next(name for name, kind in KINDS.items() if type(config) is kind.config)


OF_TASK = ("prompt_length", "vocab", "answer_length", "answer_vocab")  # sizes that the task gives


def own_sizes(kind: str) -> tuple[str, ...]:
    """The sizes that a kind of model has beside those of its task: `("width", "layers", "heads")`."""
    return tuple(field.name for field in dataclasses.fields(KINDS[kind].config) if field.name not in OF_TASK)


@functools.partial(jax.jit, static_argnames="config")
def build(key: jax.Array, config: Config) -> Model:
    """An untrained model of the given sizes; one program in place of some forty."""
    return KINDS[kind_of(config)].model(config, key)
