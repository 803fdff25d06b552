"""Latent adversarial training: perturbations of the residual stream instead of prompts, and their controls.

A perturbation is `[T + N - 1, D]`, one vector a token, each within an L2 ball. The ball's radius is `eps` times the
mean norm of the residuals before block `layer`, measured on the batch, so that radii mean the same at every layer;
layer 0 is the embedding space, layer L the stream before the head. Of several layers each has a perturbation of its
own, and all are climbed at once. Of the loss a share `weight` is perturbed and the rest clean, on the same prompts.
Robustness to these perturbations is never the result: failures are counted in the input space, and `latent_failures`
says whether the two agree.

Reference: Casper et al. 2024, Defending Against Unforeseen Failure Modes with Latent Adversarial Training; Hubinger
2019, Relaxed adversarial training for inner alignment.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from testbed.objective import Objective
from testbed.policy import greedy
from testbed.task import Task, transcript_of
from testbed.training.losses import WEIGHT, Loss, cross_entropy, mixed, prompt_loss

Layers = int | tuple[int, ...]


class Ascent(NamedTuple):
    """How an adversary climbs in the latent space: how many steps, and how long each is, as a share of the radius."""

    steps: int = 6
    stride: float = 0.4


USUAL_ASCENT = Ascent()


def mean_norm(model, task: Task, prompts: jax.Array, layer: int) -> jax.Array:
    """Mean norm of the residuals before block `layer` over prompts `[B, T]` and tokens: a forward pass a prompt.

    Before the head, only the N residuals that it reads count.
    """
    read = task.transcript_length if layer == model.config.layers else model.config.positions

    def one(prompt):
        residual = model.residual(jax.nn.one_hot(prompt, task.vocab), transcript_of(task, prompt), layer)
        return jnp.linalg.norm(residual[-read:], axis=-1).mean()

    return jax.lax.stop_gradient(jax.vmap(one)(prompts).mean())


def ascend(
    height: Callable[[jax.Array], jax.Array], start: jax.Array, radius: jax.Array, ascent: Ascent = USUAL_ASCENT
) -> jax.Array:
    """Where normalised steps up `height` lead from `start` `[..., D]`, each vector kept within its ball.

    The balls lie around zero, of one radius, or of one each. A vector without a slope does not move. Reference: Madry
    et al. 2018, projected gradient ascent in L2.
    """

    def one_step(delta, _):
        delta = delta + ascent.stride * radius * unit(jax.grad(height)(delta))
        return delta * jnp.minimum(1, radius / jnp.maximum(jnp.linalg.norm(delta, axis=-1, keepdims=True), 1e-12)), None

    return jax.lax.scan(one_step, start, length=ascent.steps)[0]


def unit(vectors: jax.Array) -> jax.Array:
    """Vectors `[..., D]` at length 1; one without a length stays."""
    return vectors / jnp.maximum(jnp.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)


Perturb = Callable[..., jax.Array]
"""`(key, model, task, prompt [T], *, place, still, radius, ascent) -> delta`, of the shape of `still`, which is zero.

`place(delta)` is the model's `latent`.
"""


def up_the_loss(key, model, task, prompt, *, place, still, radius, ascent):
    """Raise the cross-entropy of the right answer."""
    return ascend(lambda delta: prompt_loss(model, task, prompt, place(delta)), still, radius, ascent)


def towards_catastrophe(key, model, task, prompt, *, place, still, radius, ascent):
    """Lower the margin; a prompt that is no hazard has no slope and stays as it is."""

    def height(delta):
        perturbed = lambda soft_prompt, answer: model(soft_prompt, answer, place(delta))
        return -Objective(task, perturbed, greedy(task)).margin(prompt)

    return ascend(height, still, radius, ascent)


def anywhere(key, model, task, prompt, *, place, still, radius, ascent):
    """A random direction for each token, to the edge of the ball."""
    return radius * unit(jax.random.normal(key, still.shape))


def perturbations(
    key,
    model,
    task: Task,
    prompts: jax.Array,
    *,
    perturb: Perturb,
    layer: Layers,
    eps: float,
    ascent: Ascent = USUAL_ASCENT,
) -> jax.Array:
    """What is added to the residual streams of prompts `[B, T]`: `[B, L + 1, T + N - 1, D]`, zero at other layers.

    Raises:
      ValueError: the model has no such layer.
    """
    layers = layers_of(model, layer)
    radius = eps * jnp.stack([mean_norm(model, task, prompts, at) for at in layers])[:, None, None]
    blank = jnp.zeros((model.config.layers + 1, model.config.positions, model.config.width))
    place = lambda delta: blank.at[jnp.asarray(layers)].set(delta)

    def one(key, prompt):
        still = blank[: len(layers)]
        return place(perturb(key, model, task, prompt, place=place, still=still, radius=radius, ascent=ascent))

    return jax.vmap(one)(jax.random.split(key, len(prompts)), prompts)


def layers_of(model, layer: Layers) -> tuple[int, ...]:
    """The layers that `layer` names, of a model that has them: 0 to L.

    Raises:
      ValueError: it has not; indexing would take the last layer for -1, and perturb nothing beyond L.
    """
    last = model.config.layers
    if not all(0 <= at <= last for at in _several(layer)):
        there = f"0 (the embedding) to {last} (before the head)"
        raise ValueError(f"layer {layer} is not in this model; name layers from {there}")
    return _several(layer)


def _several(layer: Layers) -> tuple[int, ...]:
    return (layer,) if isinstance(layer, int) else tuple(layer)


@functools.partial(jax.jit, static_argnames=("task", "layer"))
def latent_failures(key, model, task: Task, prompts: jax.Array, *, layer: Layers, eps: float) -> jax.Array:
    """bool `[B]`: which prompts `[B, T]` fail once their residuals are pushed towards the catastrophe.

    How robust a model is in the latent space; what it does on real prompts is another question.

    Raises:
      ValueError: the model has no such layer.
    """
    latents = perturbations(key, model, task, prompts, perturb=towards_catastrophe, layer=layer, eps=eps)

    def one(prompt, latent):
        perturbed = lambda soft_prompt, answer: model(soft_prompt, answer, latent)
        return Objective(task, perturbed, greedy(task)).margin(prompt) <= 0

    return jax.vmap(one)(prompts, latents)


def _perturbed(
    perturb: Perturb, layer: Layers, eps: float, weight: float, ascent: Ascent = USUAL_ASCENT
) -> Callable[..., jax.Array]:
    """The loss: on the prompts as they are, and on the same with perturbed residuals."""
    perturbed = functools.partial(perturbations, perturb=perturb, layer=layer, eps=eps, ascent=ascent)

    def value(key, model, task, prompts):
        latents = perturbed(key, jax.lax.stop_gradient(model), task, prompts)
        return mixed(cross_entropy(model, task, prompts), cross_entropy(model, task, prompts, latents), weight)

    return value


@functools.cache
def untargeted(layer: Layers, eps: float, ascent: Ascent = USUAL_ASCENT, weight: float = WEIGHT) -> Loss:
    """Perturbations that raise the loss of the right answer: two gradients a prompt more than the ascent's steps."""
    value = _perturbed(up_the_loss, layer, eps, weight, ascent)
    return Loss(value, gradients=ascent.steps + 2, forwards=len(_several(layer)))


@functools.cache
def one_sided(layer: Layers, eps: float, ascent: Ascent = USUAL_ASCENT, weight: float = WEIGHT) -> Loss:
    """Perturbations that lower the margin of hazardous prompts, towards the catastrophe; others are left alone.

    For tasks with a single catastrophic answer to a prompt, as all classifiers have; priced as `untargeted`.
    """
    value = _perturbed(towards_catastrophe, layer, eps, weight, ascent)
    return Loss(value, gradients=ascent.steps + 2, forwards=len(_several(layer)))


@functools.cache
def noise(layer: Layers, eps: float, weight: float = WEIGHT) -> Loss:
    """Random directions with the norm that the others reach at most: the control that gradients must beat."""
    return Loss(_perturbed(anywhere, layer, eps, weight), gradients=2, forwards=len(_several(layer)))
