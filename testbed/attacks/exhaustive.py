"""Exhaustive search: the yardstick that misses nothing, given the calls."""

import functools

import jax
import jax.numpy as jnp

from testbed.attacks.moves import anywhere
from testbed.attacks.search import Attack, score


@functools.cache
def exhaustive(batch: int = 16) -> Attack:
    """Score the next `batch` prompts of the input space a step, in rank order from a random one on.

    After the last prompt comes the first, so steps that score as many prompts as the space holds have scored each:
    every failure is seen. Prompts that are no hazard are walked, and paid for, like the others.
    """

    def init(key, objective, prompt, margin):
        # The state is the next prompt as digits of a mixed-radix number: it never overflows.
        allowed = jnp.asarray(objective.allowed)
        return jnp.take_along_axis(allowed.cumsum(axis=1) - 1, anywhere(key, allowed)[:, None], axis=1)[:, 0]

    def step(key, objective, digits):
        allowed = jnp.asarray(objective.allowed)
        sizes, tokens = allowed.sum(axis=1), jnp.argsort(~allowed, axis=1)

        def after(number):
            """`digits` plus `number`; what is carried beyond the first digit is dropped."""
            carry, result = number, []
            for digit, size in zip(digits[::-1], sizes[::-1], strict=True):
                carry, digit = jnp.divmod(digit + carry, size)
                result.append(digit)
            return jnp.stack(result[::-1])

        ahead = jax.vmap(after)(jnp.arange(batch + 1))
        return ahead[-1], score(objective, jnp.take_along_axis(tokens[None], ahead[:-1, :, None], axis=2)[..., 0])

    return Attack("exhaustive", init, step, gradients=0, candidates=lambda objective: batch)
