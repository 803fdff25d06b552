"""The Task contract: a small problem, a checker that says what a catastrophe is, and the input space as data."""

import dataclasses
import itertools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

MOST_ANSWERS = 4096


@dataclasses.dataclass(frozen=True, eq=False)
class Task:
    """A synthetic task: sizes and pure, jittable functions of one prompt.

    A classifier has `answer_length` N = 1, a generator N > 1. Two tasks are equal only if they are the same object,
    so a task can be a static argument of `jax.jit`; the factories in `tasks/` return one object per set of sizes.

    Attributes:
      name: the task's key in the table of tasks.
      vocab, prompt_length, answer_vocab, answer_length: V, T, A, N.
      refusal: the answer token that is always safe (ALARM, DENY, REFUSE).
      allowed: bool `[T, V]`, the tokens that may stand at each position; the input space is their product.
      sample: `key -> prompt [T]`, the clean distribution.
      sample_hazard: `key -> prompt [T]`, hazardous prompts from a broad, documented distribution.
      label: `prompt -> answer [N]`, the right answer for any prompt of the input space.
      hazardous: `prompt -> bool`, whether a catastrophic answer exists.
      catastrophe: `(prompt, answer) -> bool`.
      egregiousness: `(prompt, answer) -> float` in [0, 1], zero exactly where there is no catastrophe.
      render: `(prompt, answer) -> str`, for people; called on concrete arrays only.
      clean_log_prob: `prompt -> float`, log-probability under `sample`, where it has a closed form.
      catastrophic_answers: `prompt -> (answers [K, N], valid [K])`; K is static. By default every answer is tried.

    Raises:
      ValueError: sizes and `allowed` disagree, or there are too many answers to enumerate by default.
    """

    name: str
    vocab: int
    prompt_length: int
    answer_vocab: int
    answer_length: int
    refusal: int
    allowed: np.ndarray
    sample: Callable[[jax.Array], jax.Array]
    sample_hazard: Callable[[jax.Array], jax.Array]
    label: Callable[[jax.Array], jax.Array]
    hazardous: Callable[[jax.Array], jax.Array]
    catastrophe: Callable[[jax.Array, jax.Array], jax.Array]
    egregiousness: Callable[[jax.Array, jax.Array], jax.Array]
    render: Callable[..., str]
    clean_log_prob: Callable[[jax.Array], jax.Array] | None = None
    catastrophic_answers: Callable[[jax.Array], tuple[jax.Array, jax.Array]] | None = None

    def __post_init__(self):
        shape = (self.prompt_length, self.vocab)
        if self.allowed.shape != shape or self.allowed.dtype != bool:
            raise ValueError(
                f"task {self.name}: allowed must be bool {shape}, not {self.allowed.dtype} {self.allowed.shape}"
            )
        if not self.allowed.any(axis=1).all():
            raise ValueError(f"task {self.name}: position {self.allowed.any(axis=1).argmin()} allows no token")
        if not 0 <= self.refusal < self.answer_vocab:
            raise ValueError(
                f"task {self.name}: refusal {self.refusal} is not an answer token below {self.answer_vocab}"
            )
        if self.catastrophic_answers is None:
            object.__setattr__(self, "catastrophic_answers", _try_every_answer(self))


def _try_every_answer(task: Task):
    count = task.answer_vocab**task.answer_length
    if count > MOST_ANSWERS:
        raise ValueError(
            f"task {task.name}: {count} answers are too many to try (limit {MOST_ANSWERS}); give catastrophic_answers"
        )
    answers = np.array(list(itertools.product(range(task.answer_vocab), repeat=task.answer_length)), np.int32)

    def catastrophic_answers(prompt):
        return jnp.asarray(answers), jax.vmap(task.catastrophe, (None, 0))(prompt, answers)

    return catastrophic_answers


def space_size(task: Task) -> int:
    """Number of prompts in the input space: the product of the row sums of `allowed`."""
    return math.prod(int(n) for n in task.allowed.sum(axis=1))


def tokens_by_position(task: Task) -> list[np.ndarray]:
    """The allowed tokens at each position, ascending: T integer arrays."""
    return [np.flatnonzero(row).astype(np.int32) for row in task.allowed]


def prompt_ids(task: Task, prompts: np.ndarray) -> np.ndarray:
    """Rank `[B]` of each prompt `[B, T]` in the input space, in lexicographic order (int64).

    Raises:
      ValueError: a prompt lies outside the input space.
    """
    prompts = np.asarray(prompts)
    inside = ((prompts >= 0) & (prompts < task.vocab)).all(axis=1)
    inside[inside] = np.take_along_axis(task.allowed[None], prompts[inside][..., None], axis=2)[..., 0].all(axis=1)
    if not inside.all():
        raise ValueError(f"prompt {prompts[inside.argmin()].tolist()} is outside the input space of task {task.name}")
    rank = np.zeros(len(prompts), np.int64)
    for position, tokens in enumerate(tokens_by_position(task)):
        rank = rank * len(tokens) + np.searchsorted(tokens, prompts[:, position])
    return rank


def prompts_of_ids(task: Task, ids: np.ndarray) -> np.ndarray:
    """The prompts `[B, T]` of the given ranks `[B]`: the inverse of `prompt_ids`."""
    rest, columns = np.asarray(ids, np.int64), []
    for tokens in reversed(tokens_by_position(task)):
        rest, digit = np.divmod(rest, len(tokens))
        columns.append(tokens[digit])
    return np.stack(columns[::-1], axis=-1)
