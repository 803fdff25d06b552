"""Notes: what a model writes before its answer. Only the answer is judged.

A model says notes, then the answer, then a tail (`Task.transcript`). Notes are the model's own, the likeliest token at
each step, whatever the policy. They cost a forward pass each.

Reference: Wei et al. 2022, Chain-of-Thought Prompting Elicits Reasoning in Large Language Models.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from testbed.task import Task


def written(model: Callable, task: Task, soft_prompt: jax.Array) -> jax.Array:
    """What the model says up to its answer, int `[transcript_length]`: its notes, then zeros. No gradient passes."""
    frozen, soft_prompt = jax.lax.stop_gradient((model, soft_prompt))

    def note(step, said):
        return said.at[step].set(frozen(soft_prompt, said)[step].argmax().astype(jnp.int32))

    return jax.lax.fori_loop(0, task.notes, note, jnp.zeros(task.transcript_length, jnp.int32))


def answer_logits(task: Task, logits: jax.Array, step: int | slice = slice(None)) -> jax.Array:
    """Logits `[..., A]` of the answer's tokens, minus infinity where a token is no answer at that step."""
    if task.answer_allowed is None:
        return logits
    return jnp.where(jnp.asarray(task.answer_allowed)[step], logits, -jnp.inf)


def after_notes(model: Callable, task: Task) -> Callable:
    """The model as its answer alone is judged: `(soft_prompt [T, V], answer [N]) -> logits [N, A]`, after its notes.

    A model of a task without notes is returned as it is.
    """
    if task.transcript_length == task.answer_length:
        return model
    place = slice(task.notes, task.notes + task.answer_length)

    def answers(soft_prompt, answer):
        said = written(model, task, soft_prompt).at[place].set(answer)
        return answer_logits(task, model(soft_prompt, said)[place])

    return answers
