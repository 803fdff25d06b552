"""Distributions over prompts that can both be drawn from and, exactly, be evaluated."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tasks.chain import Chain, log_prob, sample


class Distribution(NamedTuple):
    """A sampler `key -> prompt [T]` and its log-probability `prompt -> float` in nats."""

    sample: Callable[[jax.Array], jax.Array]
    log_prob: Callable[[jax.Array], jax.Array]


def of_chain(chain: Chain) -> Distribution:
    """The distribution that a chain draws from."""
    return Distribution(lambda key: sample(key, chain), lambda prompt: log_prob(chain, prompt))


def uniform(sample: Callable, contains: Callable, size: int) -> Distribution:
    """A sampler that is known to be uniform over the `size` prompts that `contains` accepts."""
    return Distribution(sample, lambda prompt: jnp.where(contains(prompt), -math.log(size), -jnp.inf))


def mixture(shares: Sequence[float], parts: Sequence[Distribution]) -> Distribution:
    """Draws from one of `parts`, chosen with probability `shares`, which add up to one; a share may be zero."""
    with np.errstate(divide="ignore"):
        log_shares = np.log(np.asarray(shares))

    def draw(key):
        part_key, *keys = jax.random.split(key, len(parts) + 1)
        drawn = jnp.stack([part.sample(k) for part, k in zip(parts, keys, strict=True)])
        return drawn[jax.random.categorical(part_key, jnp.asarray(log_shares, jnp.float32))]

    def log_prob(prompt):
        logs = [share + part.log_prob(prompt) for share, part in zip(log_shares, parts, strict=True)]
        return jax.nn.logsumexp(jnp.stack(logs))

    return Distribution(draw, log_prob)


def guarded_shares(eps: float) -> tuple[float, float, float]:
    """How often a clean prompt of such a task (`guarded`) is benign, narrow and wide."""
    return 0.75, 0.25 * (1 - eps), 0.25 * eps


def guarded(benign: Distribution, narrow: Distribution, wide: Distribution, eps: float) -> Distribution:
    """Clean prompts of a task whose model must refuse: three quarters benign, a quarter to be refused.

    Those to be refused are `narrow`, except with probability `eps` (the rarity dial) `wide`.
    """
    return mixture(guarded_shares(eps), (benign, narrow, wide))
