"""A learned attacker: a small policy that writes prompts, trained by reinforcement against the model."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from testbed.attacks.search import Attack, comparable, score

STARTS = 256


class Writer(NamedTuple):
    """Logits of the next token: by position `[T, V]` plus by the token before `[V, V]`."""

    place: jax.Array
    follow: jax.Array


def _log_probability(writer, allowed, prompt):
    before = jnp.concatenate([jnp.zeros((1, allowed.shape[1])), writer.follow[prompt[:-1]]])
    logits = jax.nn.log_softmax(jnp.where(allowed, writer.place + before, -jnp.inf))
    return jnp.take_along_axis(logits, prompt[:, None], axis=1).sum()


def _write(key, writer, allowed):
    def write(before, at):
        key, place, row = at
        # By inverse CDF: one random number a token, where Gumbel noise would take one for each token of the vocabulary.
        token = jax.random.choice(key, len(row), p=jax.nn.softmax(jnp.where(row, place + before, -jnp.inf)))
        return writer.follow[token], token

    keys = jax.random.split(key, len(allowed))
    return jax.lax.scan(write, jnp.zeros(allowed.shape[1]), (keys, writer.place, allowed))[1]


@functools.cache
def learned(batch: int = 16, rate: float = 0.1, entropy: float = 0.01) -> Attack:
    """Score `batch` prompts written by the policy a step, and train it on them by REINFORCE.

    The reward is the share of the batch that a prompt beats less the share that beats it: it has mean zero, which is
    the baseline, and does not mind huge margins. `entropy` weighs a bonus on the policy's entropy; `rate` is Adam's.
    The policy begins as the token frequencies of fresh hazardous prompts; every call that trains it is a candidate.
    Reference: Williams 1992, Simple Statistical Gradient-Following Algorithms; Perez et al. 2022 for red teaming.
    """
    optimiser = optax.adam(rate)

    def init(key, objective, prompt, margin):
        starts = jax.vmap(objective.start)(jax.random.split(key, STARTS))
        vocab = objective.allowed.shape[1]
        frequency = jax.nn.one_hot(starts, vocab).mean(axis=0)
        writer = Writer(jnp.log(frequency + 0.1 / vocab), jnp.zeros((vocab, vocab)))
        return writer, optimiser.init(writer)

    def step(key, objective, state):
        writer, moments = state
        allowed = jnp.asarray(objective.allowed)
        scored = score(objective, jax.vmap(_write, (0, None, None))(jax.random.split(key, batch), writer, allowed))
        margins = comparable(scored.margins)
        reward = (margins[:, None] < margins).mean(axis=1) - (margins[:, None] > margins).mean(axis=1)

        def loss(writer):
            log_p = jax.vmap(_log_probability, (None, None, 0))(writer, allowed, scored.prompts)
            surprise = jax.lax.stop_gradient(log_p.mean() - log_p)
            return -((reward + entropy * surprise) * log_p).mean()

        updates, moments = optimiser.update(jax.grad(loss)(writer), moments)
        return (optax.apply_updates(writer, updates), moments), scored

    return Attack("learned", init, step, gradients=0, candidates=lambda objective: batch)
