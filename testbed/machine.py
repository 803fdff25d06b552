"""A finite-state model: it reads a prompt token by token, and all that it remembers is a few signs.

The state is h in {-1, +1}^k, and a token x leads to

    h' = sign(carry * h + W2 relu(W1 h + E x + b1) + b2)

After the last token the logits are `W3 h + b3`. A generator reads what it says, token by token, as it reads prompts.
There are at most 2^k states, so prompts are paths in a small graph, and failures are counted in spaces that nobody can
enumerate (`testbed.evaluation.paths`).

The arithmetic is exact. Weights are read rounded to a grid, so every sum is a multiple of a fixed step. If no sum
exceeds 2^24 steps (`exactness`), float32 rounds nothing. Then the order of sums, the batch and the processor don't
matter. Gradients pass through the rounding as if it were not there, and through the sign as if it were tanh.

Reference: Bengio et al. 2013, Estimating or Propagating Gradients Through Stochastic Neurons (straight-through).
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from testbed.model import MOST_SIZE, PRECISION
from testbed.task import Task

GRID = 2.0**-6  # weights are read as multiples of it
WHOLE = 2.0**24  # below it, float32 holds every whole number
MOST_BITS = 16


@dataclasses.dataclass(frozen=True)
class MachineConfig:
    """Sizes of a machine: the task's (T, V, N, A), `bits` k of the state and the `hidden` width of its step.

    With `positional`, each position of the prompt and of the answer has token embeddings `E` of its own.

    Raises:
      ValueError: a size is no whole number in its range.
    """

    prompt_length: int
    vocab: int
    answer_length: int
    answer_vocab: int
    bits: int = 16
    hidden: int = 64
    positional: bool = False

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name != "positional" and (not isinstance(value, int) or value < 1):
                raise ValueError(f"machine {field.name} must be a whole number of at least 1, not {value!r}")
            if value > MOST_SIZE:
                raise ValueError(f"machine {field.name} must be at most {MOST_SIZE:,}, not {value:.3g}")
        if self.bits > MOST_BITS:
            raise ValueError(f"machine bits must be at most {MOST_BITS}, not {self.bits}: its states are counted")

    @property
    def positions(self) -> int:
        """Steps T + N - 1: one a token that is read."""
        return self.prompt_length + self.answer_length - 1

    @property
    def layers(self) -> int:
        """One: a latent perturbation reaches the sums under the sign (layer 0) or the last state (layer 1)."""
        return 1

    @property
    def width(self) -> int:
        """Numbers of a state k, and so of a latent perturbation."""
        return self.bits


def machine_config(task: Task, **sizes) -> MachineConfig:
    """The config of a machine for `task`; `sizes` are `bits`, `hidden` and `positional`."""
    return MachineConfig(task.prompt_length, task.vocab, task.transcript_length, task.answer_vocab, **sizes)


@jax.custom_jvp
def on_grid(weights: jax.Array) -> jax.Array:
    """Weights rounded to multiples of `GRID`; a half goes to the even one."""
    return jnp.round(weights / GRID) * GRID


@on_grid.defjvp
def _straight_through(primals, tangents):
    return on_grid(*primals), tangents[0]


@jax.custom_jvp
def sign(sums: jax.Array) -> jax.Array:
    """+1 where a sum is at least zero, else -1."""
    return jnp.where(sums >= 0, 1.0, -1.0)


@sign.defjvp
def _as_tanh(primals, tangents):
    return sign(*primals), tangents[0] * (1 - jnp.tanh(primals[0]) ** 2)


class Cell(NamedTuple):
    """The weights of a machine as they are read, on the grid; k bits, m hidden.

    Attributes:
      embed: E `[V, m]` of the prompt's tokens, or `[T, V, m]` of a positional machine.
      read, read_bias: W1 `[k, m]` and b1 `[m]`.
      write, write_bias: W2 `[m, k]` and b2 `[k]`.
      carry: `[k]`.
      start: `[k]`, whose signs are the first state.
      head, head_bias: W3 `[k, A]` and b3 `[A]`.
      answer_embed: E `[A, m]` of the answer's tokens, or `[N - 1, A, m]`; None where an answer is one token.
    """

    embed: jax.Array
    read: jax.Array
    read_bias: jax.Array
    write: jax.Array
    write_bias: jax.Array
    carry: jax.Array
    start: jax.Array
    head: jax.Array
    head_bias: jax.Array
    answer_embed: jax.Array | None = None

    @staticmethod
    def at(table: jax.Array, position: int | jax.Array) -> jax.Array:
        """The embeddings `[V, m]` or `[A, m]` of a position, from a table for all positions or of each."""
        return table[position] if table.ndim == 3 else table

    def sums(self, state: jax.Array, seen: jax.Array) -> jax.Array:
        """What the next state `[..., k]` is the sign of, after a state `[..., k]` and an embedding `[..., m]`."""
        hidden = jax.nn.relu(jnp.matmul(state, self.read, precision=PRECISION) + seen + self.read_bias)
        return self.carry * state + jnp.matmul(hidden, self.write, precision=PRECISION) + self.write_bias

    def logits(self, state: jax.Array) -> jax.Array:
        """Logits `[..., A]` of last states `[..., k]`."""
        return jnp.matmul(state, self.head, precision=PRECISION) + self.head_bias


class Machine(nnx.Module):
    """A recurrent model with a finite state, called as a `testbed.model.Transformer` is. A plain pytree."""

    def __init__(self, config: MachineConfig, key: jax.Array):
        rngs = nnx.Rngs(key)
        k, m, said = config.bits, config.hidden, config.answer_length - 1

        def tables(positions):
            return (positions,) * config.positional

        def normal(*shape, size=1.0):
            return nnx.Param(size * jax.random.normal(rngs.params(), shape))

        self.config = config
        self.embed = normal(*tables(config.prompt_length), config.vocab, m)
        self.read = normal(k, m, size=k**-0.5)
        self.read_bias = nnx.Param(jnp.zeros(m))
        self.write = normal(m, k, size=m**-0.5)
        self.write_bias = nnx.Param(jnp.zeros(k))
        self.carry = nnx.Param(jnp.ones(k))
        self.start = normal(k)
        self.head = normal(k, config.answer_vocab, size=k**-0.5)
        self.head_bias = nnx.Param(jnp.zeros(config.answer_vocab))
        if said:
            self.answer_embed = normal(*tables(said), config.answer_vocab, m)

    def cell(self) -> Cell:
        """The weights on the grid."""
        return Cell(**{name: on_grid(getattr(self, name)[...]) for name in Cell._fields if hasattr(self, name)})

    def _run(self, soft_prompt, answer, latent):
        """The weights, sums `[T + N - 1, k]` under the signs and states as many, perturbed if `latent` is given."""
        cell, (length, _) = self.cell(), soft_prompt.shape
        push = jnp.zeros((2, self.config.positions, self.config.bits)) if latent is None else latent

        def read(state, table, rows, push):
            # Each step looks up what it reads: done before, for all steps at once, it costs more than all else.
            def step(state, inputs):
                row, own, push = inputs
                seen = jnp.matmul(row, table if own is None else own, precision=PRECISION)
                sums = cell.sums(state, seen) + push
                state = sign(sums)
                return state, (sums, state)

            return jax.lax.scan(step, state, (rows, table if table.ndim == 3 else None, push))

        state, told = read(sign(cell.start), cell.embed, soft_prompt, push[0, :length])
        if cell.answer_embed is not None:
            said = jax.nn.one_hot(answer[:-1], self.config.answer_vocab)
            _, more = read(state, cell.answer_embed, said, push[0, length:])
            told = jax.tree.map(lambda *parts: jnp.concatenate(parts), told, more)
        sums, states = told
        return cell, sums, states + push[1]

    def __call__(self, soft_prompt: jax.Array, answer: jax.Array, latent: jax.Array | None = None) -> jax.Array:
        """Logits `[N, A]`, each of the answer's tokens given those before it.

        Args:
          soft_prompt: `[T, V]`, one-hot or relaxed rows.
          answer: `[N]`; its last token is not read.
          latent: `[2, T + N - 1, k]`, added to the sums under the sign, and to the states (the head reads the last N).
        """
        cell, _, states = self._run(soft_prompt, answer, latent)
        return cell.logits(states[-self.config.answer_length :])

    def residual(self, soft_prompt: jax.Array, answer: jax.Array, layer: int) -> jax.Array:
        """What `latent[layer]` is added to, `[T + N - 1, k]`: the sums under the sign, or for layer 1 the states."""
        return self._run(soft_prompt, answer, None)[1 + layer]

    def final(self, soft_prompt: jax.Array, answer: jax.Array, latent: jax.Array | None = None) -> jax.Array:
        """The last states `[N, k]`: what the head reads, linearly, to give the logits of the same call."""
        return self._run(soft_prompt, answer, latent)[2][-self.config.answer_length :]


def exactness(model: Machine) -> float:
    """The largest sum that a machine can meet, as a share of the largest that float32 adds exactly.

    Below 1, every partial sum in any order is exact. It is NaN if a weight is not finite.
    """
    cell = jax.tree.map(lambda part: np.abs(np.asarray(part, np.float64)), model.cell())
    tables = [table.reshape(-1, table.shape[-1]) for table in (cell.embed, cell.answer_embed) if table is not None]
    embed = np.concatenate(tables).max(axis=0)
    hidden = cell.read.sum(axis=0) + embed + cell.read_bias
    sums = cell.carry + hidden @ cell.write + cell.write_bias
    logits = cell.head.sum(axis=0) + cell.head_bias
    largest = max(hidden.max() / GRID, logits.max() / GRID, sums.max() / GRID**2)
    return float(largest / WHOLE) if np.isfinite([*hidden, *sums, *logits]).all() else float("nan")


def refuse_inexact(model: Machine) -> None:
    """Say in one line that a machine's arithmetic may round, so that its states are no truth.

    Raises:
      ValueError: its `exactness` is 1 or more, or not a number.
    """
    share = exactness(model)
    if not share < 1:
        raise ValueError(
            f"this machine's sums reach {share:.3g} times what float32 adds exactly, so it cannot be counted; "
            "train it with a lower learning rate or more weight decay"
        )
