"""A walk over the whole input space as a tree, and what a model says at every leaf.

Keys and values of a prefix are computed once and shared by all prompts that begin with it, so a prompt costs about one
token's forward pass instead of T. A chunk is the subtree under one prefix; its levels are arrays, and a node finds its
ancestors by reshaping, so nothing is gathered or copied.
"""

import collections
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from testbed.broken import refuse_broken
from testbed.devices import spread
from testbed.evaluation.paths import walkable
from testbed.machine import Machine
from testbed.model import PRECISION, Transformer
from testbed.notes import after_notes, answer_logits
from testbed.objective import forced_logits
from testbed.policy import best_unrefused, refusal_gap, unrefused
from testbed.task import Task, prompts_of_ids, space_size, tokens_by_position

LARGEST_SPACE = 2**28  # what is counted unless more is asked for: minutes
MOST_COUNTABLE = 2**48  # what can be asked for: years, and ranks that two numbers of 31 bits hold
LEAVES_A_CHUNK = 4096
CHUNKS_A_CALL = 64
LOGITS_A_CHUNK = 2**22  # forced logits of a chunk's leaves, so that many long answers don't fill the memory


class Leaves(NamedTuple):
    """What a model says about n prompts, before any policy reads it.

    Attributes:
      prompts: `[n, T]`.
      answers: the catastrophic answers `[n, K, N]`; valid `[n, K]` says which exist.
      forced: teacher-forced logits `[n, K, N, A]` along them.
      unrefused: `[n, N]`, the greedy answer that never refuses; score `[n]`: it is given iff score <= tau.
    """

    prompts: jax.Array
    answers: jax.Array
    valid: jax.Array
    forced: jax.Array
    unrefused: jax.Array
    score: jax.Array


Walk = Callable[[Any, Task, jax.Array], Leaves]
Read = Callable[[Any, Task, Leaves], Any]


def _complete(task: Task, prefix: jax.Array) -> jax.Array:
    """All prompts `[n, T]` of the input space that begin with `prefix`, in lexicographic order."""
    rest = tokens_by_position(task)[len(prefix) :]
    suffixes = np.stack(np.meshgrid(*rest, indexing="ij"), axis=-1).reshape(-1, len(rest)) if rest else np.empty((1, 0))
    suffixes = jnp.asarray(suffixes, jnp.int32)
    return jnp.concatenate([jnp.broadcast_to(prefix, (len(suffixes), len(prefix))), suffixes], axis=1)


def _attend(queries: jax.Array, levels) -> jax.Array:
    """Attention `[n, H, d]` of n nodes over their ancestors and themselves.

    `levels` holds (keys, values) `[n_l, H, d]` of each level; node i's ancestor on it is i // (n // n_l).
    """
    n, heads, _ = queries.shape

    def children(a, level):
        return a.reshape(len(level), -1, *a.shape[1:])

    scores = [
        jnp.einsum("pchd,phd->pch", children(queries, k), k, precision=PRECISION).reshape(n, heads) for k, _ in levels
    ]
    weights = jax.nn.softmax(jnp.stack(scores), axis=0)
    return sum(
        (children(w, v)[..., None] * v[:, None]).reshape(queries.shape)
        for w, (_, v) in zip(weights, levels, strict=True)
    )


def _grow(model: Transformer, cache, embedded: jax.Array, parents: int, read: bool):
    """Give each of `parents` nodes b children.

    Args:
      cache: a tuple a layer, with (keys, values) a level.
      embedded: `[parents, b, D]`, or `[1, b, D]` if all parents get the same children, whose first projections are
        then computed once for all.
      read: whether the children's logits are wanted.

    Returns:
      Logits `[parents * b, A]` or None, and the longer cache.
    """
    branches, x, longer = embedded.shape[1], embedded, []

    def spread(a):
        return jnp.broadcast_to(a, (parents, *a.shape[1:])).reshape(parents * branches, *a.shape[2:])

    for layer, block in enumerate(model.blocks):
        normed = block.norm_attention(x)
        keys_values, queries = block.keys_values(normed), block.queries(normed)
        if layer == 0:
            x, queries, keys_values = jax.tree.map(spread, (x, queries, keys_values))
        longer.append((*cache[layer], keys_values))
        if read or layer < len(model.blocks) - 1:
            x = block.finish(x, _attend(queries, longer[layer]))
    return (model.readout(x) if read else None), tuple(longer)


def shared_prefixes(
    model: Transformer, task: Task, prefix: jax.Array, bias: Callable[[jax.Array], jax.Array] | None = None
) -> Leaves:
    """Judge every prompt that begins with `prefix`, computing each node of the tree once.

    `bias`: `prompt [T] -> [N, A]`, what is added to the logits at that prompt, whatever was said before. A machine has
    no keys and values to share, so its prompts are judged one by one.
    """
    if isinstance(model, Machine):
        return plain_forward(model if bias is None else _biased(model, bias), task, prefix)
    nodes, cache, length = 1, ((),) * len(model.blocks), task.prompt_length
    for position, tokens in enumerate(tokens_by_position(task)):
        tokens = prefix[position, None] if position < len(prefix) else tokens
        embedded = model.prompt_embedding.kernel[tokens] + model.position[position]
        logits, cache = _grow(model, cache, embedded[None], nodes, read=position == length - 1)
        nodes *= len(tokens)
    prompts = _complete(task, prefix)
    answers, valid = jax.vmap(task.catastrophic_answers)(prompts)
    biases = None if bias is None else jax.vmap(bias)(prompts)[:, None]

    def biased(logits, step):
        """Logits `[n * b, A]` at the given step of the answer, the bias of their prompts added."""
        logits = answer_logits(task, logits, step)
        if bias is None:
            return logits
        return (logits.reshape(len(prompts), -1, logits.shape[-1]) + biases[:, :, step]).reshape(logits.shape)

    def say(token, step, cache):
        """Logits `[n * b, A]` after the tokens `[n, b]` of the given step of the transcript."""
        embedded = model.answer_embedding(token) + model.position[length + step]
        return _grow(model, cache, embedded, len(token), read=True)

    def speak(token, step, cache):
        """Logits `[n * b, A]` after the answer tokens `[n, b]` of the given step."""
        logits, cache = say(token, task.notes + step, cache)
        return biased(logits, step + 1), cache

    for step in range(task.notes):
        logits, cache = say(logits.argmax(axis=-1)[:, None], step, cache)
    logits = biased(logits, 0)
    forced, forced_cache = [jnp.broadcast_to(logits[:, None], (*answers.shape[:2], logits.shape[1]))], cache
    token, gaps = best_unrefused(logits, task.refusal), [refusal_gap(logits, task.refusal)]
    spoken, spoken_cache = [token], cache
    for step in range(task.answer_length - 1):
        tokens = answers[..., step] if step == 0 else answers[..., step].reshape(-1, 1)
        logits, forced_cache = speak(tokens, step, forced_cache)
        forced.append(logits.reshape(*answers.shape[:2], -1))
        logits, spoken_cache = speak(spoken[-1][:, None], step, spoken_cache)
        spoken.append(best_unrefused(logits, task.refusal))
        gaps.append(refusal_gap(logits, task.refusal))
    return Leaves(
        prompts, answers, valid, jnp.stack(forced, axis=2), jnp.stack(spoken, axis=1), jnp.stack(gaps).max(axis=0)
    )


def _biased(model: Machine, bias: Callable[[jax.Array], jax.Array]) -> Callable:
    return lambda soft_prompt, answer: model(soft_prompt, answer) + bias(soft_prompt.argmax(axis=1))


def plain_forward(model, task: Task, prefix: jax.Array) -> Leaves:
    """The same by a batched forward pass over whole prompts: slower, and right for any callable model.

    A transformer's notes are written from kept keys and values, as everywhere (`testbed.notes`).
    """
    return leaves_of(model, task, _complete(task, prefix))


def leaves_of(model, task: Task, prompts: jax.Array) -> Leaves:
    """What any callable model says about given prompts `[n, T]`."""

    def one(prompt):
        answers, valid = task.catastrophic_answers(prompt)
        forced = forced_logits(after_notes(model, task), jax.nn.one_hot(prompt, task.vocab), answers)
        return Leaves(prompt, answers, valid, forced, *unrefused(model, task, prompt))

    return jax.vmap(one)(prompts)


def steps_of(task: Task) -> int:
    """The price of a count: a step a prompt, and one for each note of a prompt."""
    return space_size(task) * (1 + task.notes)


def countable(task: Task, model=None, *, largest: int | None = None) -> bool:
    """Whether failures can be counted: in at most `largest` steps, or of a machine on a task with a checker.

    `largest` is `LARGEST_SPACE` by default. What keeps something of each prompt can't go beyond that.
    """
    return steps_of(task) <= (LARGEST_SPACE if largest is None else largest) or walkable(model, task)


def refuse_if_too_large(task: Task, *, largest: int | None = None) -> None:
    """Say in one line that an input space cannot be counted.

    Raises:
      ValueError: it takes more than `largest` steps (`countable`).
    """
    if not countable(task, largest=largest):
        notes = f", times {task.notes} notes," if task.notes else ","
        most = LARGEST_SPACE if largest is None else largest
        raise ValueError(
            f"task {task.name} has {space_size(task):,} prompts{notes} more than the {most:,} that can be counted; "
            "make it smaller (length, vocab), allow more (--largest_space), estimate instead "
            "(testbed.evaluation.samples), or count a machine by paths on a task with an automaton "
            "(testbed.evaluation.paths)"
        )


def refuse_if_unfit(model, task: Task) -> None:
    """Say in one line that a Transformer is not of a task's sizes; other callables are believed.

    Raises:
      ValueError: it is not.
    """
    config = getattr(model, "config", None)
    if config and (config.prompt_length, config.vocab, config.answer_length, config.answer_vocab) != (
        task.prompt_length, task.vocab, task.transcript_length, task.answer_vocab
    ):  # fmt: skip
        sizes = f"prompts of {task.prompt_length} tokens of {task.vocab}, answers of {task.transcript_length}"
        raise ValueError(
            f"a model of sizes {config} does not fit task {task.name} ({sizes}); build it from model_config(task)"
        )


def _chunk(task: Task) -> tuple[int, int]:
    """Length of the prefixes that head a chunk, and the number of leaves below one."""
    answers, _ = jax.eval_shape(task.catastrophic_answers, jax.ShapeDtypeStruct((task.prompt_length,), jnp.int32))
    most = max(1, min(LEAVES_A_CHUNK, LOGITS_A_CHUNK // (answers.size * task.answer_vocab)))
    branches, leaves, first = [len(t) for t in tokens_by_position(task)], 1, task.prompt_length
    while first > 0 and leaves * branches[first - 1] <= most:
        first -= 1
        leaves *= branches[first]
    return first, leaves


@partial(jax.jit, static_argnames=("task", "walk", "read"))
def _read_chunks(model, arguments, prefixes: jax.Array, task: Task, walk: Walk, read: Read):
    """What `read` makes of the leaves below each prefix, `[chunks, n, ...]`; prefixes `[chunks, s]`."""

    def mine(shared, prefixes):
        model, arguments = shared
        return jax.lax.map(lambda prefix: read(arguments, task, walk(model, task, prefix)), prefixes)

    return spread(mine, (model, arguments), prefixes)


def _ahead(function: Callable, arguments: Sequence, calls: int = 2) -> Iterator:
    """Results of `function` in order, with `calls` of them under way in threads: one call leaves a core idle."""
    yield function(arguments[0])  # alone, so that what it compiles is compiled once
    with ThreadPoolExecutor(calls) as pool:
        waiting = collections.deque()
        for argument in arguments[1:]:
            waiting.append(pool.submit(function, argument))
            if len(waiting) > calls:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


class Parts(NamedTuple):
    """The input space in `count` parts of `prompts` each, the last perhaps of fewer.

    `read(number)` reads one, `each(numbers)` iterates over several in order.
    """

    count: int
    prompts: int
    read: Callable[[int], Any]
    each: Callable[[Sequence[int]], Iterator]


def over_space(
    read: Read, model, arguments, task: Task, *, walk: Walk = shared_prefixes, largest: int | None = None
) -> Parts:
    """Read every prompt of the input space, in lexicographic order, a few hundred thousand at a time.

    Args:
      read: `(arguments, task, leaves) -> pytree` of arrays `[n, ...]`, jittable; parts come as numpy.
      arguments: a pytree, traced; what `read` needs besides the leaves.
      largest: as in `countable`.

    Raises:
      ValueError: the space is too large, or the model is not of the task's sizes.
      FloatingPointError: some of its weights are NaN.
    """
    refuse_if_too_large(task, largest=largest)
    refuse_if_unfit(model, task)
    refuse_broken(model)
    first, leaves = _chunk(task)
    heads = space_size(task) // leaves
    size = min(heads, CHUNKS_A_CALL)

    def part(number: int):
        # The last call is filled up with repeats, so that every call has one shape; they are dropped again.
        rows = np.arange(number * size, min((number + 1) * size, heads))
        prefixes = prompts_of_ids(task, np.resize(rows, size) * leaves)[:, :first]
        answer = jax.device_get(_read_chunks(model, arguments, prefixes, task, walk, read))
        return jax.tree.map(lambda a: a[: len(rows)].reshape(-1, *a.shape[2:]), answer)

    return Parts(-(-heads // size), size * leaves, part, partial(_ahead, part))
