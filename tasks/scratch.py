"""Scratchpads: a classifier that writes something before its answer, or after it.

Whether that helps can depend on three things: what is written, how much is computed, and what the training shows. So
each kind but the first is a control of `trace`.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from testbed.task import Task

SCRATCH = ("none", "trace", "filler", "copy", "after")
ANSWERS = 2  # the answer's tokens come first


def with_scratch(task: Task, scratch: str, trace: Callable[[jax.Array], jax.Array], states: int) -> Task:
    """A classifier with a scratchpad of one token a prompt token.

    Args:
      scratch: `none`; `trace`, the rule's own state after each token, then the answer; `filler`, the same dot as often;
        `copy`, the prompt; `after`, the answer, then the states: the same supervision and length as `trace`.
      trace: `prompt -> [T]`, the rule's states, below `states`; the last one decides the answer.

    Raises:
      ValueError: there is no such kind.

    Reference: Nye et al. 2021, Show Your Work; fillers: Pfau et al. 2024, Let's Think Dot by Dot.
    """
    if scratch not in SCRATCH:
        raise ValueError(f"scratch must be one of {', '.join(SCRATCH)}, not {scratch!r}")
    if scratch == "none":
        return task
    written, symbols = {
        "trace": (trace, states),
        "after": (trace, states),
        "filler": (jnp.zeros_like, 1),
        "copy": (lambda prompt: prompt, task.vocab),
    }[scratch]
    before = scratch != "after"

    def transcript(prompt):
        said = ANSWERS + written(prompt).astype(jnp.int32)
        return jnp.concatenate([said, task.label(prompt)] if before else [task.label(prompt), said])

    return dataclasses.replace(
        task,
        answer_vocab=ANSWERS + symbols,
        notes=task.prompt_length * before,
        tail=task.prompt_length * (not before),
        transcript=transcript,
        answer_allowed=np.arange(ANSWERS + symbols)[None] < ANSWERS,
        catastrophic_answers=lambda prompt: (jnp.zeros((1, 1), jnp.int32), task.hazardous(prompt)[None]),
        checker=None,  # counts by paths are for models that answer at once
        clean_chains=(),
    )


def states_along(follow: np.ndarray, prompt: jax.Array) -> jax.Array:
    """The states `[T]` of an automaton `[states, V]` after each token of a prompt, from state 0."""
    table = jnp.asarray(follow, jnp.int32)

    def step(state, token):
        state = table[state, token]
        return state, state

    return jax.lax.scan(step, jnp.zeros((), jnp.int32), prompt)[1]
