"""Moves in the input space that searches share: random edits, and tokens ranked by their first-order promise."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

Replace = Callable[[jax.Array, jax.Array], jax.Array]  # (key, position) -> token


def another(key: jax.Array, allowed: jax.Array, token: jax.Array) -> jax.Array:
    """A uniformly random token of the row `allowed` `[V]` other than `token`; `token` itself if there is no other."""
    others = _others(allowed, token)
    return _nth(jax.random.randint(key, (), 0, jnp.maximum(others.sum(), 1)), others, token)


def mutated(key: jax.Array, allowed: jax.Array, prompt: jax.Array) -> jax.Array:
    """`prompt` `[T]`, each token replaced by another with probability 1/T: one number says whether, and by which."""
    others = _others(allowed, prompt)
    share = jax.random.uniform(key, prompt.shape) * len(prompt)  # below 1: a place among the others
    return _nth((share * others.sum(axis=-1)).astype(jnp.int32), others, prompt)


def _others(allowed, token):
    return allowed & (jnp.arange(allowed.shape[-1]) != token[..., None])


def _nth(n, tokens, otherwise):
    """The n-th of the `tokens` (bool `[..., V]`), `otherwise` where there are not so many."""
    found = tokens.cumsum(axis=-1) > n[..., None]
    return jnp.where(found.any(axis=-1), found.argmax(axis=-1), otherwise)


def anywhere(key: jax.Array, allowed: jax.Array) -> jax.Array:
    """A uniformly random prompt `[T]` of the input space `allowed` `[T, V]`, hazardous or not."""
    return jax.random.categorical(key, jnp.where(allowed, 0.0, -jnp.inf))


def anything(allowed: jax.Array, prompt: jax.Array) -> Replace:
    """Replace a token of `prompt` by any other that is allowed there."""
    return lambda key, position: another(key, allowed[position], prompt[position])


def edit(key: jax.Array, prompt: jax.Array, replace: Replace, most: int, *, least: int = 1) -> jax.Array:
    """`prompt` `[T]` with `least` to `most` tokens, at different random positions, replaced by `replace`.

    With `anything` the move is symmetric: there are as many ways back.
    """
    number_key, position_key, token_key = jax.random.split(key, 3)
    most = min(most, len(prompt))
    number = jax.random.randint(number_key, (), min(least, most), most + 1)
    _, positions = jax.lax.top_k(jax.random.uniform(position_key, prompt.shape), most)
    tokens = jax.vmap(replace)(jax.random.split(token_key, most), positions)
    return prompt.at[positions].set(jnp.where(jnp.arange(most) < number, tokens, prompt[positions]))


def further(key: jax.Array, allowed: jax.Array, prompts: jax.Array, edits: int) -> jax.Array:
    """`prompts` `[C, T]`, each with up to `edits` more random edits: some hazards can't be crossed by single swaps."""
    if not edits:
        return prompts
    keys = jax.random.split(key, len(prompts))
    return jax.vmap(lambda key, prompt: edit(key, prompt, anything(allowed, prompt), edits, least=0))(keys, prompts)


def inserted(allowed: jax.Array, prompt: jax.Array, position: jax.Array, token: jax.Array) -> jax.Array:
    """`prompt` `[T]` with `token` before `position`: what follows moves on, the last token falls off."""
    place = jnp.arange(len(prompt))
    return _fitting(allowed, jnp.where(place < position, prompt, jnp.roll(prompt, 1)).at[position].set(token), prompt)


def deleted(allowed: jax.Array, prompt: jax.Array, position: jax.Array, token: jax.Array) -> jax.Array:
    """`prompt` `[T]` without its token at `position`: what follows moves up, `token` comes last."""
    place = jnp.arange(len(prompt))
    return _fitting(allowed, jnp.where(place < position, prompt, jnp.roll(prompt, -1)).at[-1].set(token), prompt)


def _fitting(allowed, shifted, prompt):
    """`shifted` where its tokens may stand, `prompt` elsewhere."""
    return jnp.where(allowed[jnp.arange(len(prompt)), shifted], shifted, prompt)


def changes(gradient: jax.Array, allowed: jax.Array, prompt: jax.Array) -> jax.Array:
    """First-order change `[..., V]` of the margin when a token of `prompt` `[...]` is replaced by each other.

    Sorted, it lists what is allowed by promise, then what has no slope (NaN), then the current token, which is no
    swap, then what is forbidden. Reference: Ebrahimi et al. 2018, HotFlip, equation 2.
    """
    current = prompt[..., None]
    worst = jnp.finfo(gradient.dtype).max
    change = gradient - jnp.take_along_axis(gradient, current, axis=-1)
    change = jnp.nan_to_num(change, nan=worst / 2, posinf=worst / 2, neginf=-worst / 2)
    change = jnp.where(jnp.arange(gradient.shape[-1]) == current, worst, change)
    return jnp.where(allowed, change, jnp.inf)


def ranked(key: jax.Array, scores: jax.Array) -> jax.Array:
    """Indices `[..., n]` that sort `scores` `[..., n]`, ties in random order.

    So where the gradient is zero, a search by gradient is random and not blind to some tokens.
    """
    return jnp.lexsort((jax.random.uniform(key, scores.shape), scores))
