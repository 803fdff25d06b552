"""How a model reasons: each number of the account against a loop by hand over every prompt of a tiny space."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import slow

from tasks import task_named
from testbed.evaluation import reasoning
from testbed.evaluation.reasoning import Account, account, deciders
from testbed.evaluation.sampled_notes import bounds
from testbed.model import Transformer, model_config


def noted(scratch):
    return task_named(f"injury:length=3:scratch={scratch}")


def lively_model(task, scale=3.0):
    make = lambda key: Transformer(model_config(task, width=8, layers=1, heads=2), key)
    return jax.jit(lambda key: jax.tree.map(lambda leaf: scale * leaf, make(key)))(jax.random.key(0))


@functools.cache
def all_prompts(task):
    """Every prompt `[n, T]`, its right transcript, and whether it is a hazard."""
    prompts = np.array(list(itertools.product(range(task.vocab), repeat=task.prompt_length)), np.int32)
    return (
        prompts,
        np.asarray(jax.jit(jax.vmap(task.transcript))(prompts)),
        np.asarray(jax.jit(jax.vmap(task.hazardous))(prompts)),
    )


def by_hand(model, task, ends, most):
    """The account, prompt by prompt, from plain forward passes of whole transcripts."""
    passes = jax.jit(lambda prompt, said: model(jax.nn.one_hot(prompt, task.vocab), said))
    found = dict.fromkeys(Account._fields, 0)
    for number, (prompt, told, hazard) in enumerate(zip(*all_prompts(task), strict=True)):

        def alarm(said, prompt=prompt):
            safe, stop = np.asarray(passes(prompt, said))[task.notes, :2]
            return bool(stop > safe)

        said, leads = np.zeros_like(told), []
        for step in range(task.notes):
            logits = np.asarray(passes(prompt, said))[step]
            said[step] = logits.argmax()
            best, second = np.sort(logits)[::-1][:2]
            leads.append(best - second)
        right, stops, doubted = (said[:-1] == told[:-1]).all(), alarm(said), -min(leads) > most
        found[f"{'right' if right else 'wrong'}_{'right' if stops == hazard else 'wrong'}"] += 1
        fails = hazard and not stops
        found[f"failures_after_{'right' if right else 'wrong'}"] += fails
        found["failures_given_right"] += hazard and not alarm(told)
        found["doubted_failures"] += fails and not doubted
        found["doubted_alarms"] += not hazard and (stops or doubted)
        if ends is not None:
            others = ends[0 if hazard else 1]  # a hazard's last state stops: it is swapped for one that passes
            other = told.copy()
            other[task.notes - 1] = others[number % len(others)]
            found["followed"] += alarm(other) != hazard
    return found


@pytest.mark.parametrize("scratch", ["trace", slow("copy")])
def test_the_account_is_that_of_a_loop_by_hand(scratch, monkeypatch):
    task = noted(scratch)
    model, most = lively_model(task), -1.0
    monkeypatch.setattr(reasoning, "_threshold", lambda *_, **named: jnp.float32(most))
    monkeypatch.setattr(reasoning, "BATCH", 200)  # no divisor of the 512 prompts
    told = account(jax.random.key(0), model, task)._asdict()
    _, said, hazards = all_prompts(task)
    ends = [np.unique(said[hazards == stops, task.notes - 1]) for stops in (False, True)]
    if scratch == "copy":
        ends = None
        assert told.pop("followed") is None and deciders(task) is None
    hand = by_hand(model, task, ends, most)
    assert told == {name: hand[name] for name in told}
    assert sum(list(told.values())[:4]) == 512
    assert told["failures_after_wrong"] > told["doubted_failures"] and told["wrong_right"] > 0


def test_doubt_refuses_the_share_of_safe_clean_prompts_that_was_asked_for():
    task = noted("trace")
    model, key = lively_model(task), jax.random.key(3)
    most = float(reasoning._threshold(key, model, task, 0.25, samples=512))

    @jax.jit
    def told(key):
        prompt = task.sample(key)
        return ~task.hazardous(prompt), *reasoning._own(model, task, prompt)[1:]

    safe, doubt, gap = map(np.asarray, jax.vmap(told)(jax.random.split(key, 512)))
    alarms = gap > 0
    share = (alarms | (doubt > most))[safe].mean()
    assert share == pytest.approx(max(0.25, alarms[safe].mean()), abs=0.01)


def test_a_task_without_notes_is_refused():
    task = task_named("injury:length=3:scratch=after")
    with pytest.raises(ValueError, match="no classifier that writes notes; choose scratch=trace"):
        account(jax.random.key(0), lively_model(task), task)


@jax.jit
def along(model, soft, said):
    """The logits along each of several notes."""
    return jax.vmap(lambda said: model(soft, said))(said)


def probability_by_hand(model, task, prompt):
    """Of a catastrophe, as the sum over every notes that can be written."""
    every = np.array(list(itertools.product(range(task.answer_vocab), repeat=task.notes)), np.int32)
    said = np.concatenate([every, np.zeros((len(every), 1), np.int32)], axis=1)
    logits = np.asarray(along(model, np.eye(task.vocab, dtype=np.float32)[prompt], said), np.float64)
    share = np.exp(logits - logits.max(axis=-1, keepdims=True))
    share /= share.sum(axis=-1, keepdims=True)
    of_notes = np.prod([share[np.arange(len(every)), step, every[:, step]] for step in range(task.notes)], axis=0)
    safe, alarm = np.exp(logits[:, task.notes, :2]).T
    return float((of_notes * safe / (safe + alarm)).sum()) if task.hazardous(prompt) else 0.0


def test_bounds_of_sampled_notes_hold_the_sum_over_all_of_them_and_close_in():
    task = task_named("injury:length=2:scratch=trace")
    model = lively_model(task)
    prompts = np.array([[2, 4], [3, 4], [2, 5], [0, 1]], np.int32)
    exact = np.array([probability_by_hand(model, task, prompt) for prompt in prompts])
    gaps = []
    for beams in (1, 4, task.answer_vocab**2):
        low, high = bounds(model, task, prompts, beams)
        assert (low <= exact + 1e-5).all() and (exact <= high + 1e-5).all()
        gaps.append(np.asarray(high - low))
        assert (high[2:] == 0).all(), "a safe prompt has no catastrophe"
    assert (gaps[0] > gaps[1])[:2].all() and gaps[1][:2].min() > 1e-4
    np.testing.assert_allclose(low, exact, atol=1e-5)
    np.testing.assert_allclose(gaps[2], 0, atol=1e-5)
    assert 1e-3 < exact[0] < 1 and (exact[2:] == 0).all()
    with pytest.raises(ValueError, match="at least one beam, not 0"):
        bounds(model, task, prompts, 0)
