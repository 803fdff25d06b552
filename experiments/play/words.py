"""A task's tokens and answers in its own words, and a key of the keyboard for each token."""

import itertools
import string
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from testbed.task import Task

LETTERS = string.digits + string.ascii_lowercase


class Words(NamedTuple):
    """How a prompt is written.

    Attributes:
      tokens: the word of each token at each position, `[T][V]`.
      before: what stands before each position and after the last, `[T + 1]`. It is mostly nothing.
      answers: the word of each answer token, `[A]`.
      keys: the key of each token, `[V]`. It is empty where there are more tokens than keys.
    """

    tokens: list[list[str]]
    before: list[str]
    answers: list[str]
    keys: list[str]


def words_of(task: Task) -> Words:
    """Read off `task.render` which word stands for which token. Tokens without a word of their own are numbers."""
    blank = np.array([np.flatnonzero(row)[0] for row in task.allowed])
    spoken = lambda prompt: task.render(prompt).split()
    base = spoken(blank)
    places, tokens = [], []
    for position in range(task.prompt_length):
        varied = np.repeat(blank[None], task.vocab, axis=0)
        varied[:, position] = np.arange(task.vocab)
        texts = [spoken(prompt) for prompt in varied]
        differ = [place for place in range(len(base)) if len({text[place] for text in texts if len(text) > place}) > 1]
        if any(len(text) != len(base) for text in texts) or len(differ) != 1:
            break
        places.append(differ[0])
        tokens.append([text[differ[0]] for text in texts])
    if len(tokens) < task.prompt_length or sorted(set(places)) != places:
        tokens = [[str(token) for token in range(task.vocab)]] * task.prompt_length
        return Words(tokens, [""] * (task.prompt_length + 1), _answers(task, blank), keys(tokens[0]))
    ends = [-1, *places, len(base)]
    before = [" ".join(base[first + 1 : last]) for first, last in itertools.pairwise(ends)]
    return Words(tokens, before, _answers(task, blank), keys([words[-1] for words in zip(*tokens, strict=True)]))


def _answers(task: Task, prompt: np.ndarray) -> list[str]:
    """The word of each answer token, as `render` writes an answer of nothing else. Tokens of notes have none."""
    allowed = np.ones(task.answer_vocab, bool) if task.answer_allowed is None else task.answer_allowed.any(axis=0)
    only = lambda token: np.full(task.answer_length, token)
    said = [task.render(prompt, only(token)) if allowed[token] else "" for token in range(task.answer_vocab)]
    return [text.rpartition("-> ")[2].split(" ")[0] for text in said]


def keys(words: list[str]) -> list[str]:
    """A letter or digit for each word: one of its own if that is free, else the first that is."""
    if len(words) > len(LETTERS):
        return []
    taken: dict[int, str] = {}
    for number, word in enumerate(words):
        own = [letter for letter in word.lower() if letter in LETTERS and letter not in taken.values()]
        if own:
            taken[number] = own[0]
    for number in range(len(words)):
        if number not in taken:
            taken[number] = next(letter for letter in LETTERS if letter not in taken.values())
    return [taken[number] for number in range(len(words))]


STARTS = ("hazard", "clean", "blank")


@partial(jax.jit, static_argnames="task")
def drawn(key: jax.Array, task: Task) -> dict[str, jax.Array]:
    """Prompts `[T]` to begin with: a random hazard, a clean one, and the blank one of first tokens."""
    hazard_key, clean_key = jax.random.split(key)
    blank = jnp.asarray(task.allowed.argmax(axis=1), jnp.int32)
    return dict(zip(STARTS, (task.sample_hazard(hazard_key), task.sample(clean_key), blank), strict=True))
