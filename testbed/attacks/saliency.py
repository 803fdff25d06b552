"""Tool-assisted rewriting, automated: where to edit, what to put there, and phrases filled in (Ziegler et al. 2022)."""

import functools

import jax
import jax.numpy as jnp

from testbed.attacks.climb import climber
from testbed.attacks.moves import anywhere, changes, deleted, inserted, ranked
from testbed.attacks.search import Attack


@functools.cache
def saliency(top: int = 8, patience: int | None = None, swaps: int = 1, shifts: bool = True) -> Attack:
    """Score the `top` replacements at the most salient position; take the best if it is better.

    With `shifts`, two candidates more: the best of these tokens inserted there, and the token there deleted, with a
    random one at the end.
    A position's saliency is the norm of the margin's gradient over its tokens. After a stale step comes the next most
    salient position, so that a pass of T stale steps looks at all; after `patience` of them (2T by default) the search
    restarts from a fresh hazardous prompt. With `swaps = 2`, another random token changes in half of the candidates.
    Reference: Ziegler et al. 2022, Adversarial Training for High-Stakes Reliability, section 4.1: the rewriting tool
    shows people which tokens matter and which replacements lower the score.
    """

    def count(objective):
        return min(top, objective.allowed.shape[1] - 1)

    def propose(key, objective, state):
        position_key, token_key, end_key = jax.random.split(key, 3)
        allowed = jnp.asarray(objective.allowed)
        gradient = objective.gradient(state.prompt)
        norms = jnp.where(allowed, gradient, 0).std(axis=1)
        position = ranked(position_key, -norms)[state.stale % len(allowed)]
        row, current = allowed[position], state.prompt[position]
        best = ranked(token_key, changes(gradient[position], row, current))[: count(objective)]
        best = jnp.where(row[best], best, current)
        replaced = jax.vmap(lambda token: state.prompt.at[position].set(token))(best)
        if not shifts:
            return replaced
        longer = inserted(allowed, state.prompt, position, best[0])
        shorter = deleted(allowed, state.prompt, position, anywhere(end_key, allowed[-1]))
        return jnp.concatenate([replaced, longer[None], shorter[None]])

    def candidates(objective):
        return count(objective) + 2 * shifts

    return climber("saliency", propose, candidates, gradients=1, patience=patience, swaps=swaps)


@functools.cache
def infill(candidates: int = 16, window: int = 3, patience: int | None = None) -> Attack:
    """Score `candidates` ways to fill two to `window` adjacent positions; take the best if it is better.

    Half of the phrases are cut out of clean prompts at the same place, half are uniformly random. Restart after
    `patience` stale steps (2T by default). No gradient is taken.
    Reference: the phrase-filling tool of Ziegler et al. 2022, section 4.1.
    """

    def propose(key, objective, state):
        width_key, first_key, clean_key, random_key = jax.random.split(key, 4)
        allowed = jnp.asarray(objective.allowed)
        widest = min(window, len(allowed))
        width = jax.random.randint(width_key, (), min(2, widest), widest + 1)
        place = jnp.arange(len(allowed)) - jax.random.randint(first_key, (), 0, len(allowed) - width + 1)
        clean = jax.vmap(objective.clean)(jax.random.split(clean_key, candidates // 2))
        random_keys = jax.random.split(random_key, candidates - candidates // 2)
        random = jax.vmap(anywhere, (0, None))(random_keys, allowed)
        return jnp.where((place >= 0) & (place < width), jnp.concatenate([clean, random]), state.prompt)

    return climber("infill", propose, lambda objective: candidates, patience=patience)
