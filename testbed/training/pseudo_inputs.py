"""Relaxed adversarial training on pseudo-inputs: points of the residual stream that no prompt need lead to.

An overseer says how surely a point is one of a hazardous prompt, the model how surely it would not refuse there. An
adversary climbs the product of both within a ball around the mean of clean activations, and the model learns to refuse
where it ends, as far as the overseer is sure. A catastrophe on a prompt nobody can find has such points too, if the
overseer knows one when it sees it. Whether a real prompt leads anywhere near them is `reachable`.

Reference: Christiano 2019, Worst-case guarantees; Hubinger 2019, Relaxed adversarial training for inner alignment.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.scipy.linalg import solve_triangular

from testbed.task import Task, transcript_of
from testbed.training.latent import USUAL_ASCENT, Ascent, ascend, layers_of, mean_norm
from testbed.training.losses import WEIGHT, Loss, cross_entropy, mixed

SEEN = 4  # clean prompts that the overseer sees, for each prompt of the batch
SHRINKAGE = 0.1


class Overseer(NamedTuple):
    """A linear discriminant: clean activations as two Gaussians of one covariance, one for hazardous prompts.

    Points `[F]` are spoken of by their whitened coordinates `u`: `point = mean + root @ u`. So the length of `u` is the
    Mahalanobis distance from the mean.

    Attributes:
      mean, root: `[F]` and `[F, F]`, of all clean activations, and the lower Cholesky factor of the covariance within
        the two kinds.
      slope, offset: `[F]` and a number: the log-odds of a hazard are `slope @ u + offset`.
    """

    mean: jax.Array
    root: jax.Array
    slope: jax.Array
    offset: jax.Array

    def whiten(self, point: jax.Array) -> jax.Array:
        """The coordinates of a point."""
        return solve_triangular(self.root, point - self.mean, lower=True)

    def log_hazardous(self, u: jax.Array) -> jax.Array:
        """log C: how surely the point at `u` is one of a hazardous prompt."""
        return jax.nn.log_sigmoid(self.slope @ u + self.offset)


def oversee(points: jax.Array, hazardous: jax.Array) -> Overseer:
    """The overseer that exact labels `[S]` of points `[S, F]` make, in closed form.

    The covariance is shrunk by a tenth towards a multiple of the identity, so that it can be inverted. Reference:
    Fisher 1936; Friedman 1989, Regularized discriminant analysis.
    """
    number, features = points.shape
    share = jnp.clip(hazardous.mean(), 1 / number, 1 - 1 / number)
    mean = points.mean(axis=0)
    centres = [(points * kind[:, None]).sum(axis=0) / jnp.maximum(kind.sum(), 1) for kind in (~hazardous, hazardous)]
    safe, hazard = (jnp.where(kind.any(), c, mean) for kind, c in zip((~hazardous, hazardous), centres, strict=True))
    centred = points - jnp.where(hazardous[:, None], hazard, safe)
    covariance = centred.T @ centred / number
    size = jnp.trace(covariance) / features
    root = jnp.linalg.cholesky((1 - SHRINKAGE) * covariance + SHRINKAGE * size * jnp.eye(features))
    safe, hazard = (solve_triangular(root, centre - mean, lower=True) for centre in (safe, hazard))
    offset = jnp.log(share) - jnp.log1p(-share) - (hazard @ hazard - safe @ safe) / 2
    return Overseer(mean, root, hazard - safe, offset)


def points_of(model, task: Task, prompts: jax.Array, layer: int) -> jax.Array:
    """The residuals of prompts `[B, T]` before block `layer`: `[B, T, D]`."""

    def one(prompt):
        said = transcript_of(task, prompt)
        return model.residual(jax.nn.one_hot(prompt, task.vocab), said, layer)[: task.prompt_length]

    return jax.vmap(one)(prompts)


def log_refuses(model, task: Task, prompt: jax.Array, latent: jax.Array) -> jax.Array:
    """Log-probability that the first token of the answer to `prompt` `[T]` refuses, its residuals being perturbed."""
    logits = model(jax.nn.one_hot(prompt, task.vocab), transcript_of(task, prompt), latent)
    return jax.nn.log_softmax(logits[0])[task.refusal]


class PseudoInputs(NamedTuple):
    """Where the adversary ended, from a batch of prompts.

    Attributes:
      points: `[B, T, D]`.
      latents: `[B, L + 1, T + N - 1, D]`, what leads there from the residuals of the prompts.
      hazardous: C there `[B]`.
    """

    points: jax.Array
    latents: jax.Array
    hazardous: jax.Array


def pseudo_inputs(
    key: jax.Array, model, task: Task, prompts: jax.Array, *, layer: int, eps: float, ascent: Ascent = USUAL_ASCENT
) -> PseudoInputs:
    """Climb C(z) P(z) from the residuals of prompts `[B, T]`, within a Mahalanobis ball around their mean.

    The radius is `eps` times the root of the number of features F = T D, in the norm of the shrunk covariance. Points
    of that very covariance would lie at 1 in the root mean square; clean activations lie nearer, since shrinkage gives
    most directions variance that they don't have: before block 1 of plain models of injury at .55 to .6 on average
    (99th percentile .9), and hazards drawn by `sample_hazard` at 1.

    Raises:
      ValueError: the model has no such layer, or several are named.
    """
    if not isinstance(layer, int):
        raise ValueError(f"pseudo-inputs are points of one layer; name a single number, not {layer}")
    layers_of(model, layer)
    draws = jax.vmap(task.sample)(jax.random.split(key, SEEN * len(prompts)))
    points = points_of(model, task, jnp.concatenate([prompts, draws]), layer)
    seen = points[len(prompts) :].reshape(len(draws), -1)
    overseer = oversee(seen, jax.vmap(task.hazardous)(draws))
    blank = jnp.zeros((model.config.layers + 1, model.config.positions, model.config.width))

    def one(prompt, start):
        end = lambda u: (overseer.mean + overseer.root @ u).reshape(start.shape)
        place = lambda point: blank.at[layer, : len(start)].set(point - start)

        def height(u):
            lets_pass = jnp.log(-jnp.expm1(jnp.minimum(log_refuses(model, task, prompt, place(end(u))), -1e-6)))
            return overseer.log_hazardous(u) + lets_pass

        u = ascend(height, overseer.whiten(start.ravel()), eps * seen.shape[1] ** 0.5, ascent)
        return PseudoInputs(end(u), place(end(u)), jnp.exp(overseer.log_hazardous(u)))

    return jax.vmap(one)(prompts, points[: len(prompts)])


@functools.cache
def pseudo(layer: int, eps: float, ascent: Ascent = USUAL_ASCENT, weight: float = WEIGHT) -> Loss:
    """Partly clean, and a share `weight` of it the cross-entropy of refusing at pseudo-inputs.

    That is multiplied by C, which bounds C P from above; the product itself is flat where the model is sure. A prompt
    takes two gradients more than the ascent has steps, and the forward passes of the overseer. What is no pass through
    the model is not charged: the covariance of F features, its Cholesky factor, and the products with it at each step
    of the climb.
    """

    def value(key, model, task, prompts):
        frozen = jax.lax.stop_gradient(model)
        made = pseudo_inputs(key, frozen, task, prompts, layer=layer, eps=eps, ascent=ascent)
        made = jax.lax.stop_gradient(made)
        refuses = jax.vmap(lambda prompt, latent: log_refuses(model, task, prompt, latent))(prompts, made.latents)
        return mixed(cross_entropy(model, task, prompts), -(made.hazardous * refuses).mean(), weight)

    return Loss(value, gradients=ascent.steps + 2, forwards=1 + SEEN)


def nearest_prompt(model, task: Task, point: jax.Array, layer: int) -> tuple[jax.Array, jax.Array]:
    """A prompt `[T]` whose residuals before block `layer` are near a point `[T, D]`, and how far they are `[T]`.

    Token by token from the left, each the nearest given those before it, which is all that its residual depends on.
    A greedy search: nearer prompts may exist.
    """
    allowed, tokens = jnp.asarray(task.allowed), jnp.arange(task.vocab)

    def choose(prompt, place):
        variants = jnp.broadcast_to(prompt, (task.vocab, len(prompt))).at[:, place].set(tokens)
        far = jnp.linalg.norm(points_of(model, task, variants, layer)[:, place] - point[place], axis=-1)
        far = jnp.where(allowed[place], far, jnp.inf)
        return prompt.at[place].set(far.argmin()), far.min()

    first = allowed.argmax(axis=1).astype(jnp.int32)
    return jax.lax.scan(choose, first, jnp.arange(task.prompt_length))


class Reach(NamedTuple):
    """What pseudo-inputs are worth.

    Attributes:
      reachable: the share with a real prompt nearby, at every token: a lower bound, as the search is greedy.
      hazardous: the share whose nearest prompt is hazardous, as the overseer would have it.
      sure: C there, on average.
      far: the farthest token's distance from the nearest prompt's, over the mean norm of residuals; the median.
    """

    reachable: float
    hazardous: float
    sure: float
    far: float


@functools.partial(jax.jit, static_argnames=("task", "layer", "number", "ascent"))
def _reach(key, model, task, layer, eps, near, number, ascent):
    prompt_key, climb_key = jax.random.split(key)
    prompts = jax.vmap(task.sample)(jax.random.split(prompt_key, number))
    made = pseudo_inputs(climb_key, model, task, prompts, layer=layer, eps=eps, ascent=ascent)
    found, far = jax.vmap(lambda point: nearest_prompt(model, task, point, layer))(made.points)
    far = far.max(axis=1) / mean_norm(model, task, prompts, layer)
    return (far <= near).mean(), jax.vmap(task.hazardous)(found).mean(), made.hazardous.mean(), jnp.median(far)


def reach(
    key: jax.Array,
    model,
    task: Task,
    *,
    layer: int,
    eps: float,
    near: float,
    number: int = 256,
    ascent: Ascent = USUAL_ASCENT,
) -> Reach:
    """Whether real prompts lead near a model's pseudo-inputs: within `near` times the mean norm, at every token."""
    return Reach(*map(float, _reach(key, model, task, layer, eps, near, number, ascent)))
