"""Rare-event estimators against a linear model whose tail is known exactly, and the errors that they must not hide."""

import dataclasses
import functools
import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from testbed.evaluation.rare import ESTIMATORS, Estimate, in_deployment, under_hazards
from testbed.evaluation.rare.estimate import health, pooled
from testbed.evaluation.rare.sampling import conditional
from testbed.objective import Objective
from testbed.policy import greedy
from testbed.task import classifier

T, V = 6, 4
PROMPTS = np.array(list(itertools.product(range(V), repeat=T)))
SAFE_FIRST = 3  # prompts that begin with this token are harmless
SMALL = {
    "naive": dict(samples=4096),
    "mhis": dict(base=256, chains=32, steps=16, burn=4),
    "itgis": dict(samples=512, batch=128),
    "splitting": dict(particles=64, moves=4),
    "qld": dict(samples=4096),
    "gld": dict(samples=4096),
    "gumbel": dict(samples=4096),
}
UNBIASED = ("naive", "itgis", "splitting", "mhis")


class Linear(NamedTuple):
    """The margin is `bias` plus a weight for each place and token."""

    weights: jax.Array
    bias: jax.Array

    def __call__(self, soft_prompt, answer, latent=None):
        alarm = self.bias + (self.weights * soft_prompt).sum()
        return jnp.stack([0 * alarm, alarm])[None]

    def final(self, soft_prompt, answer, latent=None):
        return (self.weights * soft_prompt).sum(axis=1)[None]


@functools.cache
def chain_task(dependent):
    """Prompts from a Markov chain, or from independent tokens; three quarters are hazardous."""
    rng = np.random.default_rng(0)
    first, follow = rng.dirichlet(2 * np.ones(V)), rng.dirichlet(np.ones(V), V)
    follow = follow if dependent else np.tile(first, (V, 1))
    log_first, log_follow = jnp.asarray(np.log(first), jnp.float32), jnp.asarray(np.log(follow), jnp.float32)

    def sample(key):
        keys, tokens = jax.random.split(key, T), []
        for place, one in enumerate(keys):
            tokens.append(jax.random.categorical(one, log_follow[tokens[-1]] if place else log_first))
        return jnp.stack(tokens).astype(jnp.int32)

    return classifier(
        "chain",
        np.ones((T, V), bool),
        lambda prompt: (prompt[0] != SAFE_FIRST).astype(jnp.float32),
        str,
        answers=("PASS", "STOP"),
        sample=sample,
        sample_hazard=lambda key: jax.random.randint(key, (T,), 0, V).at[0].min(SAFE_FIRST - 1),
        clean_log_prob=lambda prompt: log_first[prompt[0]] + log_follow[prompt[:-1], prompt[1:]].sum(),
    )


def linear(task, target):
    """A linear model that fails with a clean probability of about `target`, and that probability, by enumeration."""
    weights = np.random.default_rng(1).normal(size=(T, V)).astype(np.float32)
    score = weights[np.arange(T), PROMPTS].sum(axis=1)
    clean = np.exp(np.asarray(jax.vmap(task.clean_log_prob)(PROMPTS), np.float64))
    clean[PROMPTS[:, 0] == SAFE_FIRST] = 0
    order = np.argsort(score)
    mass = clean[order].cumsum()
    at = np.searchsorted(mass, target)
    bias = -(score[order][at] + score[order][at + 1]) / 2
    return Objective(task, Linear(jnp.asarray(weights), jnp.float32(bias)), greedy(task)), mass[at]


@pytest.fixture(scope="module")
def asked():
    """Ten answers of every estimator, with the truth: a chain of dependent tokens, failing once in a few thousand."""
    objective, truth = linear(chain_task(dependent=True), 3e-4)
    keys = jax.random.split(jax.random.key(0), 10)
    return truth, {name: [ESTIMATORS[name](**size)(key, objective) for key in keys] for name, size in SMALL.items()}


def test_every_estimator_is_tried():
    assert SMALL.keys() == ESTIMATORS.keys()


@pytest.mark.parametrize("name", UNBIASED)
def test_samplers_are_right_on_average_though_tokens_depend_on_each_other(asked, name):
    truth, answers = asked
    values = np.array([e.value for e in answers[name]])
    assert abs(values.mean() - truth) < 4 * max(values.std(ddof=1), truth / 10) / np.sqrt(len(values))
    assert np.abs(np.log10(values.mean() / truth)) < 0.3


@pytest.mark.parametrize("name", ["naive", "itgis", "splitting", "mhis"])
def test_their_intervals_cover(asked, name):
    truth, answers = asked
    assert sum(e.low <= truth <= e.high for e in answers[name]) >= 7, "of ten 95 % intervals"


@pytest.mark.parametrize("name", SMALL)
def test_an_estimate_tells_its_interval_its_health_and_its_calls(asked, name):
    _, answers = asked
    for e in answers[name]:
        assert 0 <= e.low <= e.value <= e.high <= 1
        assert e.effective >= 0 and 0 < e.largest <= 1 and e.calls > 0
    calls = {"naive": 4096, "mhis": 8 * (256 + 4 * 32 * 16), "itgis": 8 * 512 * 4, "qld": 4096, "gld": 4096}
    if name in calls:
        assert {e.calls for e in answers[name]} == {calls[name]}


def test_what_sampling_never_sees_is_estimated_to_a_few_tenths_of_a_decade():
    objective, truth = linear(chain_task(dependent=False), 5e-6)
    assert truth < 1e-5
    for name in ("itgis", "splitting"):
        value = np.mean([ESTIMATORS[name](**SMALL[name])(jax.random.key(k), objective).value for k in range(3)])
        assert abs(np.log10(value / truth)) < 0.5, name


def test_splitting_counts_its_levels_to_a_few_per_cent():
    objective, truth = linear(chain_task(dependent=True), 1e-2)
    e = ESTIMATORS["splitting"](particles=512, moves=8)(jax.random.key(0), objective)
    assert e.value == pytest.approx(truth, rel=0.15), "one level more or less is a quarter"


def test_a_gaussian_and_two_independent_halves_are_what_two_of_them_assume():
    """A sum of many independent terms: the quadratic estimate is consistent, and the tail is not Gaussian's."""
    objective, truth = linear(chain_task(dependent=False), 1e-3)
    value = ESTIMATORS["qld"](**SMALL["qld"])(jax.random.key(0), objective).value
    assert abs(np.log10(value / truth)) < 0.2


def test_zero_observed_is_not_zero():
    objective, _ = linear(chain_task(dependent=True), 3e-4)
    never = dataclasses.replace(objective, model=objective.model._replace(bias=jnp.float32(50)))
    for name in ("naive", "mhis", "itgis", "splitting"):
        e = ESTIMATORS[name](**SMALL[name])(jax.random.key(0), never)
        assert (e.value, e.low, e.effective, e.largest) == (0, 0, 0, 1)
        assert e.high > 1e-4, "no bound is claimed that samples of the distribution itself don't give"


def test_a_gibbs_step_leaves_the_distribution_as_it_is():
    """Chi-squared over two positions, of prompts moved many times."""
    task = chain_task(dependent=True)
    objective = Objective(task, None, greedy(task))

    def walk(key):
        start_key, walk_key = jax.random.split(key)
        step = lambda prompt, key: (conditional(key, objective, prompt), None)
        return jax.lax.scan(step, task.sample(start_key), jax.random.split(walk_key, 12))[0]

    moved = np.asarray(jax.jit(jax.vmap(walk))(jax.random.split(jax.random.key(0), 10_000)))
    clean = np.exp(np.asarray(jax.vmap(task.clean_log_prob)(PROMPTS), np.float64))
    for i, j in ((0, 1), (2, 5)):
        expected = np.bincount(V * PROMPTS[:, i] + PROMPTS[:, j], clean, V * V) * len(moved)
        seen = np.bincount(V * moved[:, i] + moved[:, j], minlength=V * V)
        assert ((seen - expected) ** 2 / expected).sum() < 40, "15 degrees of freedom: 40 is p = 5e-4"


def test_asking_about_hazards_gives_the_failing_share_of_hazardous_prompts():
    task = chain_task(dependent=True)
    objective, _ = linear(task, 1e-2)
    hazards = (V - 1) * V ** (T - 1)
    asked = dataclasses.replace(objective, task=under_hazards(task, hazards))
    margins = jax.jit(jax.vmap(objective.margin))(PROMPTS)
    share = float((margins <= 0).sum() / hazards)
    e = ESTIMATORS["naive"](**SMALL["naive"])(jax.random.key(1), asked)
    assert e.low <= share <= e.high
    everything = np.exp(np.asarray(jax.vmap(asked.task.clean_log_prob)(PROMPTS), np.float64))
    np.testing.assert_allclose(everything.sum(), 1, rtol=1e-5)


def test_replicates_are_pooled_by_hand():
    e = pooled([1e-3, 3e-3], 1.0, np.array([1.0, 1.0, 2.0, 0.0]), 7)
    spread = 12.706204736 * np.std([1, 3], ddof=1) / (2 * np.sqrt(2))
    np.testing.assert_allclose(e[:3], [2e-3, 2e-3 * np.exp(-spread), min(1, 2e-3 * np.exp(spread))], rtol=1e-6)
    assert e[3:] == (16 / 6, 0.5, 7)
    assert health(np.zeros(3)) == (0, 1)


def test_deployment_is_many_independent_prompts():
    e = in_deployment(Estimate(1e-6, 1e-7, 1e-5, 9.0, 0.5, 10), 1_000_000)
    np.testing.assert_allclose(e[:3], [1 - np.exp(-1), 1 - np.exp(-0.1), 1 - np.exp(-10)], rtol=1e-4)


@pytest.mark.parametrize(
    ("name", "options", "complaint"),
    [
        ("naive", dict(samples=0), "samples must be at least 1, not 0"),
        ("mhis", dict(steps=4, burn=4), "steps after burn-in must be at least 1, not 0"),
        ("itgis", dict(samples=100, batch=64), "samples must be a multiple of the batch 64, not 100"),
        ("splitting", dict(particles=0), "particles must be at least 8, not 0"),
        ("gumbel", dict(samples=8), "samples a replicate must be at least 10, not 1"),
    ],
)
def test_too_few_samples_are_refused_in_a_line(name, options, complaint):
    with pytest.raises(ValueError, match=complaint):
        ESTIMATORS[name](**options)


@pytest.mark.parametrize("name", ["mhis", "itgis", "splitting"])
def test_what_needs_a_density_says_so(name):
    task = dataclasses.replace(chain_task(dependent=True), clean_log_prob=None)
    with pytest.raises(ValueError, match=f"{name} needs task chain's clean_log_prob"):
        ESTIMATORS[name](**SMALL[name])(jax.random.key(0), Objective(task, None, greedy(task)))


def test_the_quadratic_estimate_refuses_a_generator(small, lively):
    task = small("cipher_vault")
    with pytest.raises(ValueError, match="reads a classifier"):
        ESTIMATORS["qld"](**SMALL["qld"])(jax.random.key(0), Objective(task, lively(task), greedy(task)))
