"""The transformer once more in plain PyTorch, as a yardstick of speed: the extra `torch`.

It is written as a textbook has it, for classifiers, and reads the weights of a model of ours. PyTorch is imported
only when it is asked for, and nothing else here needs it.
"""

from collections.abc import Callable
from types import ModuleType
from typing import Any

import jax
import numpy as np

from testbed.model import ModelConfig, Transformer
from testbed.outside import extra_package
from testbed.training.schedule import Schedule

EPSILON = 1e-6  # of a norm, as flax has it


def pytorch() -> ModuleType:
    """PyTorch.

    Raises:
      ValueError: it is not installed; says how to install it.
    """
    return extra_package("torch", "torch")


def weights_of(model: Transformer) -> dict[str, Any]:
    """A model's weights as PyTorch's tensors that take gradients, by their names in the pytree."""
    torch = pytorch()
    leaves = jax.tree_util.tree_leaves_with_path(model)
    named = {jax.tree_util.keystr(path, simple=True, separator="."): np.array(leaf) for path, leaf in leaves}
    # Flax calls what a parameter holds its value.
    return {name.removesuffix(".value"): torch.tensor(array, requires_grad=True) for name, array in named.items()}


def logits_of(weights: dict[str, Any], tokens: Any, config: ModelConfig) -> Any:
    """Logits `[B, A]` of prompts `[B, T]`, all positions computed."""
    torch = pytorch()
    kernel = lambda name: weights[f"{name}.kernel"]
    affine = lambda name, x: x @ kernel(name) + weights[f"{name}.bias"]

    def norm(name, x):
        shape, scale, bias = (config.width,), weights[f"{name}.scale"], weights[f"{name}.bias"]
        return torch.nn.functional.layer_norm(x, shape, scale, bias, EPSILON)

    def heads(x):
        return x.unflatten(-1, (config.heads, -1)).transpose(1, 2)

    x = kernel("prompt_embedding")[tokens] + weights["position"]
    for layer in range(config.layers):
        block = f"blocks.{layer}"
        normed = norm(f"{block}.norm_attention", x)
        query, key, value = (heads(normed @ kernel(f"{block}.{name}")) for name in ("query", "key", "value"))
        seen = torch.nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + seen.transpose(1, 2).flatten(2) @ kernel(f"{block}.output")
        x = x + affine(f"{block}.down", affine(f"{block}.up", norm(f"{block}.norm_mlp", x)).relu())
    return affine("head", norm("norm", x[:, -1]))


def trainer(model: Transformer, prompts: np.ndarray, labels: np.ndarray, schedule: Schedule) -> Callable[[], float]:
    """A function that takes a schedule's steps on one batch, eagerly: forward, backward, AdamW. It gives the last loss.

    Prompts `[B, T]`, labels `[B]`; the learning rate is the schedule's peak throughout.
    """
    torch = pytorch()
    weights, tokens, wanted = weights_of(model), torch.tensor(prompts).long(), torch.tensor(labels).long()
    descent = torch.optim.AdamW(
        weights.values(), lr=schedule.learning_rate, betas=(0.9, schedule.b2), eps=schedule.adam_eps,
        weight_decay=schedule.weight_decay,
    )  # fmt: skip

    def run():
        for _ in range(schedule.steps):
            descent.zero_grad()
            loss = torch.nn.functional.cross_entropy(logits_of(weights, tokens, model.config), wanted)
            loss.backward()
            descent.step()
        return loss.item()

    return run


def forward(model: Transformer, prompts: np.ndarray, batch: int) -> Callable[[], float]:
    """A function that runs the model over all prompts `[n, T]` in batches, eagerly, and gives the sum of the logits."""
    torch = pytorch()
    weights, batches = weights_of(model), torch.tensor(prompts).long().split(batch)

    def run():
        with torch.no_grad():
            return sum(logits_of(weights, tokens, model.config).sum().item() for tokens in batches)

    return run
