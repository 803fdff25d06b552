"""The kinds of models, by name: what a saved model says it is, and what an arm asks for."""

from typing import NamedTuple

import jax

from testbed.machine import Machine, MachineConfig
from testbed.model import ModelConfig, Transformer

Config = ModelConfig | MachineConfig
Model = Transformer | Machine


class Kind(NamedTuple):
    """A kind of model: its sizes, and the network of these sizes."""

    config: type[Config]
    model: type[Model]


KINDS = {"transformer": Kind(ModelConfig, Transformer), "machine": Kind(MachineConfig, Machine)}


def kind_of(config: Config) -> str:
    """The name of the kind that a config is of."""
    return next(name for name, kind in KINDS.items() if type(config) is kind.config)


def build(key: jax.Array, config: Config) -> Model:
    """An untrained model of the given sizes."""
    return KINDS[kind_of(config)].model(config, key)
