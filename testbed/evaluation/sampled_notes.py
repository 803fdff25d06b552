"""Sampled notes: how probable a catastrophe is where notes are sampled too, between a lower and an upper bound.

The probability is a sum over all transcripts, which are too many. A few of the likeliest notes give the lower bound.
All others may end in a catastrophe, or not: their share is the gap to the upper one. Any set of notes gives bounds; a
beam search finds a good one.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from testbed.notes import answer_logits
from testbed.objective import answer_margins, catastrophe_probability, combine, forced_logits
from testbed.policy import stochastic
from testbed.task import Task


class Bounds(NamedTuple):
    """The probability of a catastrophe lies between `low` and `high`: `[n]` of n prompts."""

    low: jax.Array
    high: jax.Array


@partial(jax.jit, static_argnames=("task", "beams"))
def bounds(model, task: Task, prompts: jax.Array, beams: int = 8) -> Bounds:
    """Bounds for each of the prompts `[n, T]`, where every note and the answer are sampled at temperature 1.

    Args:
      beams: how many notes are followed, those likeliest so far at each step; with more, the bounds are closer. They
        cost `beams` forward passes a note.

    Raises:
      ValueError: no beams.
    """
    if beams < 1:
        raise ValueError(f"bounds need at least one beam, not {beams}")
    return jax.vmap(lambda prompt: _bounds(model, task, prompt, beams))(prompts)


def _bounds(model, task: Task, prompt: jax.Array, beams: int) -> Bounds:
    soft, place = jax.nn.one_hot(prompt, task.vocab), slice(task.notes, task.notes + task.answer_length)
    said = jnp.zeros((beams, task.transcript_length), jnp.int32)
    log_p = jnp.full(beams, -jnp.inf).at[0].set(0.0)  # all begin alike: one is enough
    for step in range(task.notes):
        logits = jax.vmap(lambda said, step=step: model(soft, said)[step])(said)
        log_p, chosen = jax.lax.top_k((log_p[:, None] + jax.nn.log_softmax(logits)).ravel(), beams)
        said = said[chosen // task.answer_vocab].at[:, step].set(chosen % task.answer_vocab)
    answers, valid = task.catastrophic_answers(prompt)
    policy = stochastic(task)

    def fails(said):
        def after(soft, answer):
            return answer_logits(task, model(soft, said.at[place].set(answer))[place])

        margins = answer_margins(policy, forced_logits(after, soft, answers), answers, valid)
        return catastrophe_probability(policy, combine(policy, margins))

    share = jnp.exp(log_p)
    low = (share * jax.vmap(fails)(said)).sum()
    others = jnp.where(valid.any(), jnp.maximum(1 - share.sum(), 0), 0)
    return Bounds(low, jnp.minimum(low + others, 1))
