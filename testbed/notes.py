"""Notes: what a model writes before its answer. Only the answer is judged.

A model says notes, then the answer, then a tail (`Task.transcript`). Notes are the model's own, the likeliest token at
each step, whatever the policy. They are priced at a forward pass each.

A transformer's keys and values are kept while it writes, so that a note takes the time of one token. Whatever confirms
a failure writes them by plain passes.

Reference: Wei et al. 2022, Chain-of-Thought Prompting Elicits Reasoning in Large Language Models.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from testbed.model import PRECISION, Transformer
from testbed.task import Task


def written(model: Callable, task: Task, soft_prompt: jax.Array) -> jax.Array:
    """What any model says up to its answer, int `[transcript_length]`: its notes, then zeros. By plain passes.

    No gradient passes.
    """
    frozen, soft_prompt = jax.lax.stop_gradient((model, soft_prompt))

    def note(step, said):
        return said.at[step].set(frozen(soft_prompt, said)[step].argmax().astype(jnp.int32))

    return jax.lax.fori_loop(0, task.notes, note, jnp.zeros(task.transcript_length, jnp.int32))


def answer_logits(task: Task, logits: jax.Array, step: int | slice = slice(None)) -> jax.Array:
    """Logits `[..., A]` of the answer's tokens, minus infinity where a token is no answer at that step."""
    if task.answer_allowed is None:
        return logits
    return jnp.where(jnp.asarray(task.answer_allowed)[step], logits, -jnp.inf)


def after_notes(model: Callable, task: Task, plain: bool = False) -> Callable:
    """The model as its answer alone is judged: `(soft_prompt [T, V], answer [N]) -> logits [N, A]`, after its notes.

    Notes are fixed in gradients. A model of a task without notes is returned as it is.

    Args:
      plain: whether every note is written by a plain pass, as those of other models than transformers always are.
    """
    if task.transcript_length == task.answer_length:
        return model
    place = slice(task.notes, task.notes + task.answer_length)

    def from_passes(soft_prompt, answer):
        said = written(model, task, soft_prompt).at[place].set(answer)
        return answer_logits(task, model(soft_prompt, said)[place])

    def from_cache(soft_prompt, answer):
        said = jnp.zeros(task.transcript_length, jnp.int32).at[place].set(answer)
        own = jnp.arange(task.transcript_length) < task.notes
        return answer_logits(task, spoken(model, task, soft_prompt, said, own=own)[1][place])

    return from_cache if isinstance(model, Transformer) and not plain else from_passes


def spoken(
    model: Transformer, task: Task, soft_prompt: jax.Array, said: jax.Array, *, own: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Speak a transcript, token by token, each from the keys and values of what was said before.

    Args:
      said: int `[transcript_length]`, the tokens that are put into the model's mouth.
      own: bool `[transcript_length]`, where it says its own likeliest token instead.

    Returns:
      What was said, and the logits `[notes + N, A]` from which each of its tokens was chosen; there is no tail.
    """
    length = task.prompt_length
    logits, cache = _read(model, soft_prompt)

    def say(carry, step):
        logits, cache = carry
        token = jnp.where(own[step], logits.argmax().astype(jnp.int32), said[step])
        x = model.answer_embedding(token) + model.position[length + step]
        return _speak(model, cache, x, length + step), (token, logits)

    last = task.notes + task.answer_length - 1
    (logits, _), (tokens, before) = jax.lax.scan(say, (logits, cache), jnp.arange(last))
    token = jnp.where(own[last], logits.argmax().astype(jnp.int32), said[last])
    return said.at[: last + 1].set(jnp.append(tokens, token)), jnp.concatenate([before, logits[None]])


def _read(model: Transformer, soft_prompt: jax.Array):
    """Logits `[A]` after the prompt; keys and values `[positions, H, d]` a layer, zero where nothing is said yet."""
    length = len(soft_prompt)
    x, cache = model.prompt_embedding(soft_prompt) + model.position[:length], []

    def with_room(a):
        return jnp.zeros((model.config.positions, *a.shape[1:]), a.dtype).at[:length].set(a)

    for block in model.blocks:
        cache.append(jax.tree.map(with_room, block.keys_values(block.norm_attention(x))))
        x = block(x, length)
    return model.readout(x[-1]), tuple(cache)


def _speak(model: Transformer, cache, x: jax.Array, position: jax.Array):
    """Logits `[A]` after one more token, embedded `[D]` at a position, and the cache with its keys and values."""
    longer = []
    for block, kept in zip(model.blocks, cache, strict=True):
        normed = block.norm_attention(x)
        keys, values = (old.at[position].set(new) for old, new in zip(kept, block.keys_values(normed), strict=True))
        scores = jnp.einsum("hd,khd->hk", block.queries(normed), keys, precision=PRECISION)
        weights = jax.nn.softmax(jnp.where(jnp.arange(len(keys)) <= position, scores, -jnp.inf), axis=-1)
        x = block.finish(x, jnp.einsum("hk,khd->hd", weights, values, precision=PRECISION))
        longer.append((keys, values))
    return model.readout(x), tuple(longer)
