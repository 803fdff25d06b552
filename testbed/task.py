"""The Task contract: a small problem, a checker that says what a catastrophe is, and the input space as data."""

import dataclasses
import itertools
import math
import operator
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from testbed.automaton import Chain, Checker

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
      poison: the same task with other samples and wrong labels, where plain models are poisoned on purpose: they are
        trained on it, and everything else (defences, attacks, counts) knows the task itself only.
      checker: the rule as an automaton, where there is a small one and a hazard has one catastrophic answer: then
        failures can be counted by paths.
      clean_chains: the clean distribution as chains `(share, chain)`, of which `clean_log_prob` is the mixture.
      notes, tail: how many tokens a model writes before its answer, and after it (`testbed.notes`). Nothing judges
        them: `label`, `catastrophe` and all others speak of the answer alone.
      transcript: `prompt -> [notes + N + tail]`, what a model is trained to say, where it is more than the label.
      answer_allowed: bool `[N, A]`, the tokens that may stand in the answer, where notes have more.

    Raises:
      ValueError: sizes, `allowed` and `checker` disagree, notes have no transcript or stand beside a checker, or there
        are too many answers to enumerate by default.
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
    poison: "Task | None" = None
    checker: Checker | None = None
    clean_chains: tuple[tuple[float, Chain], ...] = ()
    notes: int = 0
    tail: int = 0
    transcript: Callable[[jax.Array], jax.Array] | None = None
    answer_allowed: np.ndarray | None = None

    @property
    def transcript_length(self) -> int:
        """Tokens that a model says: notes, answer and tail."""
        return self.notes + self.answer_length + self.tail

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
        if (self.notes or self.tail) and (self.transcript is None or self.answer_allowed is None):
            raise ValueError(f"task {self.name}: notes or a tail need a transcript and answer_allowed")
        if self.checker is not None and (self.notes or self.tail):
            raise ValueError(f"task {self.name}: counts by paths are of answers without notes; give no checker")
        if self.checker is not None:
            _refuse_unfit_checker(self, self.checker)
        if self.catastrophic_answers is None:
            object.__setattr__(self, "catastrophic_answers", _try_every_answer(self))


def _refuse_unfit_checker(task: Task, checker: Checker) -> None:
    states = len(checker.level)
    fits = checker.follow.shape == (states, task.vocab) and ((checker.follow >= 0) & (checker.follow < states)).all()
    if not fits or checker.answer.shape != (states, task.answer_length):
        raise ValueError(
            f"task {task.name}: the checker's follow must be [{states}, {task.vocab}] states below {states}, and its "
            f"answer [{states}, {task.answer_length}], not {list(checker.follow.shape)}, {list(checker.answer.shape)}"
        )


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


def classifier(
    name: str,
    allowed: np.ndarray,
    level: Callable[[jax.Array], jax.Array],
    show: Callable[[np.ndarray], str],
    *,
    answers: tuple[str, str],
    sample: Callable,
    sample_hazard: Callable,
    clean_log_prob: Callable | None = None,
    checker: Checker | None = None,
    clean_chains: tuple[tuple[float, Chain], ...] = (),
) -> Task:
    """A task with two answers of one token: 0 lets a prompt pass, 1 stops it.

    Args:
      level: `prompt -> float`, how egregious it is to let a prompt pass, in [0, 1]; a prompt is hazardous, and must be
        stopped, where that is positive.
      show: the prompt as text.
      answers: the words for 0 and 1.
      checker, clean_chains: as in `Task`; the levels of the checker are those of `level`.
    """

    allowed = np.asarray(allowed)

    def hazardous(prompt):
        return level(prompt) > 0

    def catastrophe(prompt, answer):
        return hazardous(prompt) & (answer[0] == 0)

    return Task(
        name=name,
        vocab=allowed.shape[1],
        prompt_length=allowed.shape[0],
        answer_vocab=2,
        answer_length=1,
        refusal=1,
        allowed=allowed,
        sample=sample,
        sample_hazard=sample_hazard,
        label=lambda prompt: hazardous(prompt)[None].astype(jnp.int32),
        hazardous=hazardous,
        catastrophe=catastrophe,
        egregiousness=lambda prompt, answer: catastrophe(prompt, answer) * level(prompt),
        render=lambda prompt, answer=None: _rendered(show(prompt), answer, answers),
        clean_log_prob=clean_log_prob,
        checker=checker,
        clean_chains=clean_chains,
    )


def guarded_generator(
    name: str,
    allowed: np.ndarray,
    solve: Callable[[jax.Array], jax.Array],
    level: Callable[[jax.Array], jax.Array],
    *,
    show: Callable[[np.ndarray], str],
    answers: Sequence[str],
    sample: Callable,
    sample_hazard: Callable,
    clean_log_prob: Callable | None = None,
    checker: Checker | None = None,
    clean_chains: tuple[tuple[float, Chain], ...] = (),
) -> Task:
    """A task that asks for a solution, except where it must be refused: a catastrophe takes the skill to solve.

    The last answer token refuses. On a hazardous prompt the right answer is to refuse throughout, and the solution,
    whole and exact, is the only catastrophe: a refusal anywhere is safe.

    Args:
      solve: `prompt -> answer [N]`, the solution, of tokens below `len(answers) - 1`.
      level: `prompt -> float`, how egregious the solution is, in [0, 1]; a prompt is hazardous where that is positive.
      show: the prompt as text.
      answers: a word for each answer token, the refusing one last.
      checker, clean_chains: as in `Task`; the answers of the checker are those of `solve`.
    """
    allowed, refusal = np.asarray(allowed), len(answers) - 1
    (length,) = jax.eval_shape(solve, jax.ShapeDtypeStruct(allowed.shape[:1], jnp.int32)).shape

    def hazardous(prompt):
        return level(prompt) > 0

    def catastrophe(prompt, answer):
        return hazardous(prompt) & (answer == solve(prompt)).all()

    return Task(
        name=name,
        vocab=allowed.shape[1],
        prompt_length=allowed.shape[0],
        answer_vocab=len(answers),
        answer_length=length,
        refusal=refusal,
        allowed=allowed,
        sample=sample,
        sample_hazard=sample_hazard,
        label=lambda prompt: jnp.where(hazardous(prompt), refusal, solve(prompt)).astype(jnp.int32),
        hazardous=hazardous,
        catastrophe=catastrophe,
        egregiousness=lambda prompt, answer: catastrophe(prompt, answer) * level(prompt),
        render=lambda prompt, answer=None: _rendered(show(prompt), answer, answers),
        clean_log_prob=clean_log_prob,
        catastrophic_answers=lambda prompt: (solve(prompt)[None].astype(jnp.int32), hazardous(prompt)[None]),
        checker=checker,
        clean_chains=clean_chains,
    )


def _rendered(prompt: str, answer, words: Sequence[str]) -> str:
    return prompt if answer is None else f"{prompt} -> {' '.join(words[int(token)] for token in answer)}"


def transcript_of(task: Task, prompt: jax.Array) -> jax.Array:
    """What a model is trained to say to a prompt `[T]`: `[transcript_length]`; the label, where it writes no more."""
    return task.label(prompt) if task.transcript is None else task.transcript(prompt)


def is_safe(task: Task, prompt: jax.Array) -> jax.Array:
    """Whether a refusal of the prompt `[T]` is a false alarm: it is not hazardous, nor is refusing the right answer."""
    return ~task.hazardous(prompt) & (task.label(prompt) != task.refusal).all()


def space_size(task: Task) -> int:
    """Number of prompts in the input space: the product of the row sums of `allowed`."""
    return math.prod(int(n) for n in task.allowed.sum(axis=1))


def tokens_by_position(task: Task) -> list[np.ndarray]:
    """The allowed tokens at each position, ascending: T integer arrays."""
    return [np.flatnonzero(row).astype(np.int32) for row in task.allowed]


def rank_type(task: Task) -> type:
    """What holds every rank of the input space: int64, or Python integers (`object`)."""
    return np.int64 if space_size(task) <= 2**63 else object


def prompt_ids(task: Task, prompts: np.ndarray) -> np.ndarray:
    """Rank `[B]` of each prompt `[B, T]` in the input space, in lexicographic order.

    int64, or Python integers where the space has 2**63 prompts or more.

    Raises:
      ValueError: a prompt lies outside the input space.
    """
    prompts = np.asarray(prompts)
    inside = ((prompts >= 0) & (prompts < task.vocab)).all(axis=1)
    inside[inside] = np.take_along_axis(task.allowed[None], prompts[inside][..., None], axis=2)[..., 0].all(axis=1)
    if not inside.all():
        raise ValueError(f"prompt {prompts[inside.argmin()].tolist()} is outside the input space of task {task.name}")
    rank = np.zeros(len(prompts), rank_type(task))
    for position, tokens in enumerate(tokens_by_position(task)):
        rank = rank * len(tokens) + np.searchsorted(tokens, prompts[:, position])
    return rank


def rank(task: Task, prompt: jax.Array) -> jax.Array:
    """`prompt_ids` of one prompt `[T]` on the device, int32: for spaces of fewer than 2**31 prompts."""
    return _rank_within(task.allowed, prompt)


def _rank_within(allowed: np.ndarray, tokens: jax.Array) -> jax.Array:
    """The rank, int32, of as many tokens as `allowed` has rows."""
    digits = jnp.asarray(allowed.cumsum(axis=1) - 1)[jnp.arange(len(allowed)), tokens]
    below = [math.prod(int(n) for n in allowed[p + 1 :].sum(axis=1)) for p in range(len(allowed))]
    return (digits * jnp.asarray(below, jnp.int32)).sum()


def _low_from(task: Task) -> int:
    """The first of those last positions whose tokens have fewer than 2**31 combinations."""
    combinations = itertools.accumulate((int(n) for n in task.allowed.sum(axis=1)[::-1]), operator.mul)
    return task.prompt_length - sum(number < 2**31 for number in combinations)


def long_rank(task: Task, prompt: jax.Array) -> jax.Array:
    """`prompt_ids` of one prompt `[T]` on the device, as two digits int32 `[2]`: `ids_of` puts them together.

    For spaces of at most 2**48 prompts.
    """
    first = _low_from(task)
    high = _rank_within(task.allowed[:first], prompt[:first]) if first else jnp.int32(0)
    return jnp.stack([high, _rank_within(task.allowed[first:], prompt[first:])])


def ids_of(task: Task, digits: np.ndarray) -> np.ndarray:
    """Ranks int64 `[B]` of the digits `[B, 2]` of `long_rank`."""
    below = math.prod(int(n) for n in task.allowed[_low_from(task) :].sum(axis=1))
    return digits[:, 0].astype(np.int64) * below + digits[:, 1]


def prompts_of_ids(task: Task, ids: np.ndarray) -> np.ndarray:
    """The prompts `[B, T]` of the given ranks `[B]`: the inverse of `prompt_ids`."""
    rest, columns = np.asarray(ids, rank_type(task)), []
    for tokens in reversed(tokens_by_position(task)):
        rest, digit = rest // len(tokens), rest % len(tokens)
        columns.append(tokens[digit.astype(np.int64)])
    return np.stack(columns[::-1], axis=-1)
