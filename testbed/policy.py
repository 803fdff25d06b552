"""Policies: how a model's logits become its answer, and how cautiously."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from testbed.broken import refuse_broken
from testbed.notes import after_notes
from testbed.pytree import register
from testbed.task import Task, is_safe

ENDLESS = 1e30  # a score that is infinite, of an answer that a model rules out, counts as this
ZERO = np.float32(0.0)  # of the same type as a measured threshold, so that both run the same compiled program


@register(meta=["refusal", "stochastic"])
@dataclasses.dataclass(frozen=True)
class Policy:
    """Answers with the refusal token's logit raised by `-tau`: greedily, or sampled at temperature 1.

    A classifier raises the alarm where `logit_alarm - logit_safe > tau`. `tau` is a leaf of the pytree, so that
    moving a threshold compiles nothing.
    """

    refusal: int
    tau: jax.Array = ZERO
    stochastic: bool = False


def greedy(task: Task) -> Policy:
    """The most likely token at each step."""
    return Policy(task.refusal)


def conservative(task: Task, tau: float | jax.Array) -> Policy:
    """Greedy with threshold `tau`: the lower, the more is refused."""
    return Policy(task.refusal, jnp.asarray(tau, jnp.float32))


def stochastic(task: Task) -> Policy:
    """Samples at temperature 1: the stochastic policy."""
    return Policy(task.refusal, stochastic=True)


def adjust(policy: Policy, logits: jax.Array) -> jax.Array:
    """Logits `[..., A]` as the policy reads them."""
    return logits.at[..., policy.refusal].add(-policy.tau)


def respond(key: jax.Array, model, policy: Policy, task: Task, *, prompt: jax.Array) -> jax.Array:
    """The answer `[N]` to a prompt `[T]`, after the model's notes: plain forward passes, nothing cached.

    `key` is used by the stochastic policy only.
    """
    answer, model = jnp.zeros(task.answer_length, jnp.int32), after_notes(model, task, plain=True)
    for step, step_key in enumerate(jax.random.split(key, task.answer_length)):
        logits = adjust(policy, model(jax.nn.one_hot(prompt, task.vocab), answer)[step])
        token = jax.random.categorical(step_key, logits) if policy.stochastic else logits.argmax()
        answer = answer.at[step].set(token.astype(jnp.int32))
    return answer


def refusal_gap(logits: jax.Array, refusal: int) -> jax.Array:
    """How far the refusal's logit stands above every other, for logits `[..., A]`."""
    return logits[..., refusal] - logits.at[..., refusal].set(-jnp.inf).max(axis=-1)


def best_unrefused(logits: jax.Array, refusal: int) -> jax.Array:
    """The likeliest token that is no refusal, for logits `[..., A]`."""
    return logits.at[..., refusal].set(-jnp.inf).argmax(axis=-1).astype(jnp.int32)


def unrefused(model, task: Task, prompt: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The greedy answer `[N]` that never refuses, and the prompt's refusal score.

    The score is the largest gap between the refusal's logit and the best other one along that answer: a greedy or
    conservative policy refuses somewhere iff score > tau, and otherwise gives that answer. For a classifier the score
    is `logit_alarm - logit_safe`.
    """
    answer, gaps, model = jnp.zeros(task.answer_length, jnp.int32), [], after_notes(model, task)
    for step in range(task.answer_length):
        logits = model(jax.nn.one_hot(prompt, task.vocab), answer)[step]
        gaps.append(refusal_gap(logits, task.refusal))
        answer = answer.at[step].set(best_unrefused(logits, task.refusal))
    return answer, jnp.stack(gaps).max()


def matched_policy(key: jax.Array, model, task: Task, blocked: float, *, samples: int = 8192) -> Policy:
    """The policy whose threshold refuses about a share `blocked` of the safe clean prompts.

    The threshold is that quantile of the refusal score over the safe ones among `samples` clean prompts. Nothing about
    failures enters, so models can be compared at matched clean false alarms, however much each likes to refuse.

    The share is that of these draws: of all clean prompts it is off by a standard error of theirs. Where scores tie, as
    those of a machine's few states, fewer may be refused. A model that rules out every other answer refuses at any
    threshold: more, then.

    Raises:
      FloatingPointError: the model's weights or answers are NaN.
      ValueError: no safe prompt was drawn.
    """
    refuse_broken(model)
    policy, scores = _matched(key, model, task, blocked, samples=samples)
    refuse_broken(model, scores)
    if np.isnan(policy.tau):
        raise ValueError(f"task {task.name}: none of {samples:,} clean prompts is safe; a threshold needs some")
    return policy


@partial(jax.jit, static_argnames=("task", "samples"))
def _matched(key, model, task: Task, blocked, *, samples: int) -> tuple[Policy, jax.Array]:
    """The threshold, and the refusal scores `[samples]` of all that was drawn."""
    prompts = jax.vmap(task.sample)(jax.random.split(key, samples))
    _, scores = jax.vmap(partial(unrefused, model, task))(prompts)
    safe = jax.vmap(partial(is_safe, task))(prompts)
    # Between a number and an infinite one a quantile is infinite or NaN, and so would be what it answers.
    finite = jnp.clip(scores, -ENDLESS, ENDLESS)
    return conservative(task, jnp.nanquantile(jnp.where(safe, finite, jnp.nan), 1 - blocked)), scores
