"""A filtered generator against brute force over every pair, and the language model that writes for it."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest

from experiments.arm import Arm, Plain
from experiments.bench import bench
from experiments.effects import only
from experiments.questions.filtered_system import FILTERED_SYSTEM, Filtered
from experiments.verdict import judge
from tasks import TASKS
from testbed.evaluation.system import System, completions, most_conservative, system
from testbed.language import completion_log_probs, language_model, next_token_loss, train_language
from testbed.policy import conservative, greedy, unrefused
from testbed.training.schedule import Schedule

TASK = TASKS["injury"](length=4)
GIVEN = 2
PROMPTS = np.array(list(itertools.product(range(8), repeat=4)))


@pytest.fixture(scope="module")
def writer():
    model = language_model(jax.random.key(0), TASK, width=16, layers=1, heads=2)
    return train_language(jax.random.key(1), model, TASK, Schedule(steps=48, batch=64))


@pytest.fixture(scope="module")
def written(writer, lively):
    return completions(completion_log_probs(writer[0], GIVEN), lively(TASK, layers=2), TASK)


@pytest.mark.slow
def test_training_learns_to_write_clean_prompts(writer):
    model, losses = writer
    assert losses[0] == pytest.approx(np.log(8), abs=0.4)
    prompts = jax.vmap(TASK.sample)(jax.random.split(jax.random.key(2), 2000))
    entropy = -float(jax.vmap(TASK.clean_log_prob)(prompts).mean()) / 4
    assert entropy < next_token_loss(model, prompts) < np.log(8) - 0.2


def test_completions_have_the_probability_of_their_tokens(writer):
    model, log_probs = writer[0], completion_log_probs(writer[0], GIVEN)
    logits = np.asarray(jax.jit(jax.vmap(model, (None, 0)))(jnp.ones((1, 1)), PROMPTS), np.float64)
    tokens = np.take_along_axis(logits - np.log(np.exp(logits).sum(2, keepdims=True)), PROMPTS[..., None], 2)[..., 0]
    np.testing.assert_allclose(log_probs.ravel(), tokens[:, GIVEN:].sum(axis=1), atol=1e-5)
    np.testing.assert_allclose(np.exp(log_probs).sum(axis=1), 1, atol=1e-5)


@pytest.fixture(scope="module")
def scores(lively):
    """Of the filter, by plain forward passes."""
    model = lively(TASK, layers=2)
    return np.asarray(jax.jit(jax.vmap(lambda prompt: unrefused(model, TASK, prompt)[1]))(PROMPTS))


def by_hand(written, filter_scores, tau, tries):
    """Follow the tries one by one, from every beginning."""
    clean = np.exp(np.asarray(jax.vmap(TASK.clean_log_prob)(PROMPTS), np.float64)).reshape(64, 64)
    hazardous = np.asarray(jax.vmap(TASK.hazardous)(PROMPTS)).reshape(64, 64)
    begin, failure, distance, used, refusal = clean.sum(axis=1), [], [], [], []
    for p, harm, score in zip(written.probability.astype(float), hazardous, filter_scores.reshape(64, 64), strict=True):
        given, ideal, left, ideal_left, spent = np.zeros(64), np.zeros(64), 1.0, 1.0, 0.0
        for _ in range(tries):
            spent += left
            given += left * p * (score <= tau)
            ideal += ideal_left * p * ~harm
            left, ideal_left = left * p[score > tau].sum(), ideal_left * p[harm].sum()
        failure.append(given[harm].sum())
        distance.append((np.abs(given - ideal).sum() + abs(left - ideal_left)) / 2)
        used.append(spent)
        refusal.append(left)
    hazard_mass = begin[:, None] * written.probability * hazardous
    passed = hazard_mass[filter_scores.reshape(64, 64) <= tau].sum() / hazard_mass.sum()
    return [begin @ failure, max(failure), begin @ used, begin @ refusal, begin @ distance, passed]


@pytest.mark.parametrize(("tau", "tries"), [(0.0, 8), (0.0, 1), (-1.5, 3), (9e9, 8), (-9e9, 8)])
def test_the_system_is_what_following_every_try_gives(written, scores, tau, tries):
    np.testing.assert_allclose(written.score.ravel(), scores, atol=1e-5)
    found = system(written, conservative(TASK, tau), tries)
    # The walk's own scores, since a score at the threshold's edge may fall either way.
    np.testing.assert_allclose(found[1:7], by_hand(written, written.score, tau, tries), atol=1e-5)


def test_more_tries_give_the_filter_more_chances_to_err(written):
    failure = [system(written, greedy(TASK), tries).failure for tries in (1, 2, 8)]
    assert failure == sorted(failure) and failure[0] < failure[-1]


def test_an_ideal_filter_never_fails_and_is_at_no_distance(written):
    ideal = written._replace(score=np.where(written.hazardous, 1.0, -1.0).astype(np.float32))
    found = system(ideal, greedy(TASK))
    assert (found.failure, found.worst, found.passed_hazards, found.stopped_safe) == (0, 0, 0, 0)
    assert found.distance < 1e-6


def test_the_conservative_threshold_is_the_lowest_that_costs_two_points(written):
    noisy = np.where(written.hazardous, 1.0, -4.0) + 1.5 * np.random.default_rng(0).standard_normal((64, 64))
    noisy = written._replace(score=noisy.astype(np.float32))
    at_zero, chosen = most_conservative(noisy, TASK)
    assert at_zero.tau == 0 and chosen.tau < 0
    assert chosen.distance <= at_zero.distance + 0.02
    assert chosen.failure < at_zero.failure
    assert most_conservative(noisy, TASK, lost=-1)[1] == at_zero


@pytest.mark.parametrize(
    ("mistake", "complaint"),
    [
        (
            lambda log_probs, model: completions(log_probs[:, :3], model, TASK),
            r"\(64, 3\) completions are not the 4,096",
        ),
        (lambda log_probs, model: completions(log_probs, model, TASKS["cipher_vault"]()), "cipher_vault is no filter"),
        (
            lambda log_probs, model: completions(log_probs, model, dataclasses.replace(TASK, clean_log_prob=None)),
            "density",
        ),
    ],
)
def test_what_does_not_fit_is_refused_in_a_line(writer, lively, mistake, complaint):
    with pytest.raises(ValueError, match=complaint):
        mistake(completion_log_probs(writer[0], GIVEN), lively(TASK, layers=2))


def test_nothing_to_complete_is_refused(writer, written):
    with pytest.raises(ValueError, match="needs 1 to 3 given tokens of 4, not 4"):
        completion_log_probs(writer[0], 4)
    with pytest.raises(ValueError, match="at least one try, not 0"):
        system(written, greedy(TASK), 0)


def record(seed, arm, at_zero, conservative):
    fields = dict.fromkeys(System._fields, 0.1)
    row = {f"zero.{f}": v for f, v in (fields | {"failure": at_zero}).items()}
    row |= {f"conservative.{f}": v for f, v in (fields | {"failure": conservative}).items()}
    return row | {"arm": arm, "seed": seed, "task": "made up", "config.given": 4}


@pytest.mark.parametrize(("after", "outcome"), [(1e-8, "supported"), (1e-4, "refuted"), (0.0, "supported")])
def test_the_verdict_is_the_declared_contrast(after, outcome):
    rows = [record(s, arm, 1e-4 * (1 + s), after) for s in range(3) for arm in ("plain", "16 rounds")]
    frame = pd.DataFrame(rows)
    assert judge(FILTERED_SYSTEM, frame).outcome == outcome
    text = FILTERED_SYSTEM.table(frame)
    assert list(text) == ["plain, zero", "plain, conservative", "16 rounds, zero", "16 rounds, conservative"]
    assert text.loc["SYSTEM FAILS, mean over clean beginnings", "plain, zero"] == "0.0002"
    assert FILTERED_SYSTEM.figure(frame).axes


@pytest.mark.parametrize(
    ("decades", "outcome"),
    [
        ([0, 0, 0], "refuted"),  # no effect
        ([-0.2, 0.1, 0.2], "refuted"),  # none but noise
        ([0.4, 1.0, 1.7], "undecided"),
        ([1.2, 1.3, 1.4], "supported"),
    ],
)
def test_the_plain_filter_is_judged_by_decades_whatever_the_defended_one_does(decades, outcome):
    rows = [record(seed, "plain", 1e-4, 1e-4 / 10**drop) for seed, drop in enumerate(decades)]
    rows += [record(seed, "16 rounds", 1e-4, 1e-7) for seed in range(3)]
    verdict = judge(FILTERED_SYSTEM, pd.DataFrame(rows))
    assert verdict.outcome == outcome, verdict.effects
    lowered = only(verdict.effects, of="failure probability, clean beginnings").set_index("before")
    assert lowered["declared"].to_dict() == {"plain, threshold 0": True, "16 rounds, threshold 0": False}
    assert lowered["effect"].tolist() == pytest.approx([np.mean(decades), 3])


@pytest.mark.slow
def test_a_filter_is_measured(tmp_path, monkeypatch):
    monkeypatch.setitem(TASKS, "injury", functools.cache(functools.partial(TASKS["injury"], length=4)))
    plain = Plain("injury", width=8, steps=16, layers=1)
    config = Filtered(plain, Arm(plain, steps=0), given=2, steps=16)
    measured = FILTERED_SYSTEM.measure(config, bench(0, tmp_path))
    assert 0 <= measured["zero"]["failure"] <= measured["zero"]["worst"] <= 1
    assert measured["conservative"]["distance"] <= measured["zero"]["distance"] + 0.02
