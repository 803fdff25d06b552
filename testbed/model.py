"""A small causal transformer as a plain pytree, and its file format."""

import dataclasses

import jax
import jax.numpy as jnp
from flax import nnx

from testbed.task import Task

MOST_LAYERS = 256  # the network is built layer by layer before it can be compared with a file
MOST_SIZE = 2**20  # of anything else


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Sizes of a transformer: the task's (T, V, N, A) and the network's own."""

    prompt_length: int
    vocab: int
    answer_length: int
    answer_vocab: int
    width: int = 32
    layers: int = 2
    heads: int = 4

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"model {field.name} must be a whole number of at least 1, not {value!r}")
            most = MOST_LAYERS if field.name == "layers" else MOST_SIZE
            if value > most:
                raise ValueError(f"model {field.name} must be at most {most:,}, not {value:.3g}")
        if self.width % self.heads:
            raise ValueError(f"model width {self.width} must be a multiple of its {self.heads} heads")

    @property
    def positions(self) -> int:
        """Residual positions T + N - 1: the last answer token is never read."""
        return self.prompt_length + self.answer_length - 1


def model_config(task: Task, **sizes: int) -> ModelConfig:
    """The config of a model for `task`; `sizes` are `width`, `layers` and `heads`."""
    return ModelConfig(task.prompt_length, task.vocab, task.transcript_length, task.answer_vocab, **sizes)


PRECISION = jax.lax.Precision.HIGHEST  # one float32 arithmetic for training, attack, enumeration and re-scoring


def _linear(inputs: int, outputs: int, rngs: nnx.Rngs, **options) -> nnx.Linear:
    return nnx.Linear(inputs, outputs, precision=PRECISION, rngs=rngs, **options)


class Block(nnx.Module):
    """One pre-LayerNorm transformer block, in pieces so that a caller may cache keys and values.

    `__call__` works on one sequence; `project` and `finish` work on any leading axes.
    """

    def __init__(self, width: int, heads: int, rngs: nnx.Rngs):
        self.heads = heads
        self.norm_attention = nnx.LayerNorm(width, use_fast_variance=False, rngs=rngs)
        self.query = _linear(width, width, rngs, use_bias=False)
        self.key = _linear(width, width, rngs, use_bias=False)
        self.value = _linear(width, width, rngs, use_bias=False)
        self.output = _linear(width, width, rngs, use_bias=False)
        self.norm_mlp = nnx.LayerNorm(width, use_fast_variance=False, rngs=rngs)
        self.up = _linear(width, 4 * width, rngs)
        self.down = _linear(4 * width, width, rngs)

    def split_heads(self, x: jax.Array) -> jax.Array:
        """`[..., D] -> [..., H, D / H]`."""
        return x.reshape(*x.shape[:-1], self.heads, -1)

    def keys_values(self, normed: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Keys and values `[..., H, D / H]` of normed residuals `[..., D]`."""
        return self.split_heads(self.key(normed)), self.split_heads(self.value(normed))

    def queries(self, normed: jax.Array) -> jax.Array:
        """Queries `[..., H, D / H]`, scaled, of normed residuals `[..., D]`."""
        q = self.split_heads(self.query(normed))
        return q * q.shape[-1] ** -0.5

    def finish(self, x: jax.Array, attended: jax.Array) -> jax.Array:
        """Residuals `[..., D]` after the block, given its attention's heads `[..., H, D / H]`."""
        x = x + self.output(attended.reshape(x.shape))
        return x + self.down(jax.nn.relu(self.up(self.norm_mlp(x))))

    def __call__(self, x: jax.Array, last: int) -> jax.Array:
        """The last `last` residuals `[last, D]` after the block, from all residuals `[positions, D]`."""
        first = x.shape[0] - last
        normed = self.norm_attention(x)
        k, v = self.keys_values(normed)
        scores = jnp.einsum("qhd,khd->hqk", self.queries(normed[first:]), k, precision=PRECISION)
        visible = jnp.arange(x.shape[0]) <= jnp.arange(first, x.shape[0])[:, None]
        weights = jax.nn.softmax(jnp.where(visible, scores, -jnp.inf), axis=-1)
        return self.finish(x[first:], jnp.einsum("hqk,khd->qhd", weights, v, precision=PRECISION))


class Transformer(nnx.Module):
    """A causal pre-LayerNorm transformer with learned positions and a ReLU MLP of four times the width.

    A plain pytree: use it under `jax.jit`, `jax.vmap` and `jax.grad` directly. It has no modes and no randomness.
    """

    def __init__(self, config: ModelConfig, key: jax.Array):
        rngs = nnx.Rngs(key)
        small = nnx.initializers.normal(0.02)
        self.config = config
        self.prompt_embedding = _linear(config.vocab, config.width, rngs, use_bias=False, kernel_init=small)
        if config.answer_length > 1:
            self.answer_embedding = nnx.Embed(config.answer_vocab, config.width, embedding_init=small, rngs=rngs)
        self.position = nnx.Param(small(rngs.params(), (config.positions, config.width)))
        self.blocks = nnx.List([Block(config.width, config.heads, rngs) for _ in range(config.layers)])
        self.norm = nnx.LayerNorm(config.width, use_fast_variance=False, rngs=rngs)
        self.head = _linear(config.width, config.answer_vocab, rngs)

    def readout(self, x: jax.Array) -> jax.Array:
        """Logits `[..., A]` of final residuals `[..., D]`."""
        return self.head(self.norm(x))

    def embed(self, soft_prompt: jax.Array, answer: jax.Array) -> jax.Array:
        """The residual stream `[T + N - 1, D]` before the first block."""
        x = self.prompt_embedding(soft_prompt)
        if self.config.answer_length > 1:
            x = jnp.concatenate([x, self.answer_embedding(answer[:-1])])
        return x + self.position

    def residual(self, soft_prompt: jax.Array, answer: jax.Array, layer: int) -> jax.Array:
        """The residual stream `[T + N - 1, D]` before block `layer`; before the head for `layer = L`."""
        x = self.embed(soft_prompt, answer)
        for _, block in zip(range(layer), self.blocks, strict=False):
            x = block(x, x.shape[0])
        return x

    def __call__(self, soft_prompt: jax.Array, answer: jax.Array, latent: jax.Array | None = None) -> jax.Array:
        """Teacher-forced logits `[N, A]`: row t is the model's view of answer token t given the earlier ones.

        Args:
          soft_prompt: `[T, V]`, one-hot or relaxed rows.
          answer: `[N]` integers; the last token is not read.
          latent: `[L + 1, T + N - 1, D]`, added to the residual stream before each block and before the head.
        """
        return self.head(self.final(soft_prompt, answer, latent))

    def final(self, soft_prompt: jax.Array, answer: jax.Array, latent: jax.Array | None = None) -> jax.Array:
        """Final residuals `[N, D]`, normed: what the head reads, linearly, to give the logits of the same call."""
        x = self.embed(soft_prompt, answer)
        for layer, block in enumerate(self.blocks):
            x = x if latent is None else x + latent[layer]
            # Only the last N residuals are read out, so the last block computes no others.
            last = self.config.answer_length if layer == self.config.layers - 1 else x.shape[0]
            x = block(x, last)
        x = x if latent is None else x + latent[-1, -x.shape[0] :]
        return self.norm(x)
