"""A model on a whole batch, in the layout in which training is quickest.

On a CPU a step is quickest with features first and the batch last, `[D, T, B]`: every product is then one of two
matrices, and all else runs along the batch. Only short sequences gain, and only where gradients are taken. The
mathematics is that of `testbed.model`; the two agree up to rounding.
"""

from functools import reduce

import jax
import jax.numpy as jnp
from flax import nnx

from testbed.model import PRECISION, Block, Transformer

# Longer sums are not fused by XLA, which then recomputes their terms.
MOST_POSITIONS = 8


def batch_logits(model, soft_prompts: jax.Array, answers: jax.Array, latents: jax.Array | None = None) -> jax.Array:
    """Teacher-forced logits `[B, N, A]`: what `model` says of each of B prompts.

    Args:
      model: any callable pytree `(soft_prompt, answer, latent) -> logits [N, A]`.
      soft_prompts: `[B, T, V]`, one-hot or relaxed rows.
      answers: `[B, N]` integers.
      latents: `[B, L + 1, T + N - 1, D]`, added to the residual streams.
    """
    if not features_first(model):
        return jax.vmap(model)(soft_prompts, answers, latents)
    latents = None if latents is None else jnp.transpose(latents, (1, 3, 2, 0))
    return jnp.transpose(_forward(model, jnp.transpose(soft_prompts), answers, latents), (2, 1, 0))


def features_first(model) -> bool:
    """Whether the other layout is the quicker one here: a short transformer on a CPU."""
    short = isinstance(model, Transformer) and model.config.positions <= MOST_POSITIONS
    return short and jax.default_backend() == "cpu"


def _forward(model: Transformer, soft_prompts: jax.Array, answers: jax.Array, latents: jax.Array | None) -> jax.Array:
    """Logits `[A, N, B]` of prompts `[V, T, B]`; latents `[L + 1, D, T + N - 1, B]`."""
    config = model.config
    x = _linear(model.prompt_embedding, soft_prompts)
    if config.answer_length > 1:
        said = model.answer_embedding(answers[:, :-1])
        x = jnp.concatenate([x, jnp.transpose(said, (2, 1, 0))], axis=1)
    x = x + jnp.transpose(model.position[...])[..., None]
    for layer, block in enumerate(model.blocks):
        x = x if latents is None else x + latents[layer]
        # Only the last N residuals are read out, so the last block computes no others.
        x = _block(block, x, config.answer_length if layer == config.layers - 1 else config.positions)
    x = x if latents is None else x + latents[-1, :, -x.shape[1] :]
    return _linear(model.head, _norm(model.norm, x))


def _linear(layer: nnx.Linear, x: jax.Array) -> jax.Array:
    """`[inputs, T, B] -> [outputs, T, B]`, as one product of two matrices."""
    flat = x.reshape(len(x), -1)
    y = jax.lax.dot_general(layer.kernel[...], flat, (((0,), (0,)), ((), ())), precision=PRECISION)
    y = y.reshape(-1, *x.shape[1:])
    return y if layer.bias is None else y + layer.bias[...][:, None, None]


def _norm(layer: nnx.LayerNorm, x: jax.Array) -> jax.Array:
    """LayerNorm over the features of `[D, T, B]`."""
    x = x - x.mean(axis=0)
    x = x * jax.lax.rsqrt((x * x).mean(axis=0) + layer.epsilon)
    return x * layer.scale[...][:, None, None] + layer.bias[...][:, None, None]


def _block(block: Block, x: jax.Array, last: int) -> jax.Array:
    """The last `last` residuals `[D, last, B]` after a block, from all of them `[D, T, B]`."""
    normed = _norm(block.norm_attention, x)
    heads = lambda layer, x: (y := _linear(layer, x)).reshape(block.heads, -1, *y.shape[1:])
    queries, keys, values = heads(block.query, normed[:, -last:]), heads(block.key, normed), heads(block.value, normed)
    attended = attend(queries * queries.shape[1] ** -0.5, keys, values)
    x = x[:, -last:] + _linear(block.output, attended.reshape(-1, *attended.shape[2:]))
    return x + _linear(block.down, jax.nn.relu(_linear(block.up, _norm(block.norm_mlp, x))))


def _sum(terms) -> jax.Array:
    """A sum term by term: XLA's own reduction over a leading axis is not vectorised on a CPU."""
    return reduce(jnp.add, terms)


def _dots(one: jax.Array, many: jax.Array) -> jax.Array:
    """Scalar products `[H, n, B]` over the features of a head, of `[H, d, B]` with `[H, d, n, B]`."""
    return _sum(one[:, i, None] * many[:, i] for i in range(one.shape[1]))


def _mix(weights: jax.Array, vectors: jax.Array) -> jax.Array:
    """The sum `[H, d, B]` of vectors `[H, d, n, B]` with weights `[H, n, B]`."""
    return _sum(weights[:, None, j] * vectors[:, :, j] for j in range(weights.shape[1]))


def _softmax(scores: jax.Array) -> jax.Array:
    """Over the n keys of `[H, n, B]`."""
    each = [scores[:, j] for j in range(scores.shape[1])]
    powers = jnp.exp(scores - reduce(jnp.maximum, each)[:, None])
    return powers / _sum(powers[:, j] for j in range(scores.shape[1]))[:, None]


@jax.custom_vjp
def attend(queries: jax.Array, keys: jax.Array, values: jax.Array) -> jax.Array:
    """Causal attention `[H, d, last, B]` of the last queries over all positions `[H, d, T, B]`, query by query.

    The gradient is written out. Left to JAX, every query would add a padded gradient of its own to all keys.
    """
    return _attend(queries, keys, values)[0]


def _attend(queries, keys, values):
    before = keys.shape[2] - queries.shape[2]
    weights = [_softmax(_dots(queries[:, :, i], keys[:, :, : before + i + 1])) for i in range(queries.shape[2])]
    out = jnp.stack([_mix(each, values) for each in weights], axis=2)
    return out, (queries, keys, values, weights)


def _attend_back(kept, slope):
    """Slopes of queries, keys and values, given that of the output `[H, d, last, B]`."""
    queries, keys, values, weights = kept
    before, slopes = keys.shape[2] - queries.shape[2], []
    for i, weight in enumerate(weights):
        rise = weight * _dots(slope[:, :, i], values[:, :, : weight.shape[1]])
        slopes.append(rise - weight * _sum(rise[:, j] for j in range(weight.shape[1]))[:, None])

    def of_key(j, weights, vectors):
        seen_by = range(max(0, j - before), len(weights))
        return _sum(weights[i][:, None, j] * vectors[:, :, i] for i in seen_by)

    positions = range(keys.shape[2])
    return (
        jnp.stack([_mix(each, keys) for each in slopes], axis=2),
        jnp.stack([of_key(j, slopes, queries) for j in positions], axis=2),
        jnp.stack([of_key(j, weights, slope) for j in positions], axis=2),
    )


attend.defvjp(_attend, _attend_back)
