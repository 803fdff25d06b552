"""Estimates and their intervals against closed forms, simulation and brute force."""

import itertools

import jax
import numpy as np
import pytest
from conftest import slow
from reference import REFERENCE
from scipy import stats

from tasks import task_named
from testbed.attacks.search import NEVER, Cost, Trace
from testbed.evaluation import exact
from testbed.evaluation.samples import clean_behaviour, failing_at_most, sampled_failures, success_by_budget
from testbed.objective import Objective, confirm
from testbed.policy import conservative, greedy, stochastic
from testbed.statistics import clopper_pearson, paired_effect, student


@pytest.mark.parametrize(("successes", "trials"), [(0, 1), (1, 1), (0, 40), (40, 40), (3, 40), (7, 8), (1, 10_000)])
@pytest.mark.parametrize("level", [0.95, 0.5])
def test_clopper_pearson_is_the_beta_quantile(successes, trials, level):
    value, low, high = clopper_pearson(successes, trials, level)
    tail = (1 - level) / 2
    assert value == successes / trials
    expected_low = stats.beta.ppf(tail, successes, trials - successes + 1) if successes else 0.0
    expected_high = stats.beta.ppf(1 - tail, successes + 1, trials - successes) if successes < trials else 1.0
    np.testing.assert_allclose([low, high], [expected_low, expected_high], rtol=1e-6)


def test_zero_observed_is_not_zero():
    """The rule of three: no failure in n trials bounds the rate (one-sided 95 %) near 3 / n."""
    assert clopper_pearson(0, 1000, confidence=0.9).high == pytest.approx(3 / 1000, rel=0.01)


@pytest.mark.parametrize("rate", [0.003, 0.1, 0.5])
def test_clopper_pearson_covers_at_least_as_often_as_it_says(rate):
    """Exactly: the probability, over the binomial distribution, that the interval holds the true rate."""
    trials = 60
    intervals = [clopper_pearson(k, trials, confidence=0.9) for k in range(trials + 1)]
    covered = [low <= rate <= high for _, low, high in intervals]
    assert stats.binom.pmf(np.arange(trials + 1), trials, rate) @ covered >= 0.9


@pytest.mark.parametrize(
    ("successes", "trials", "complaint"),
    [(0, 0, "at least one trial, not 0"), (3, 2, "3 successes do not fit into 2 trials"), (-1, 2, "-1 successes")],
)
def test_impossible_counts_are_refused(successes, trials, complaint):
    with pytest.raises(ValueError, match=complaint):
        clopper_pearson(successes, trials)


@pytest.fixture(scope="module", params=["injury", "cipher_vault"])
def known(request, small, table, all_prompts):
    """A task, a table to answer from, the exact clean distribution, and the verdicts of the rule."""
    task = small(request.param)
    prompts = all_prompts(task)
    verdicts = [REFERENCE[task.name](tuple(prompt), vocab=task.vocab) for prompt in prompts.tolist()]
    favoured = np.array([next(iter(verdict.forbidden), verdict.label) for verdict in verdicts])
    clean = np.exp(np.asarray(jax.vmap(task.clean_log_prob)(prompts), np.float64))
    return task, table(task, favoured), clean, verdicts


def looked_up(task, model, row, tau):
    answer = []
    for step in range(task.answer_length):
        logits = model.spoken(row, answer + [0] * (task.answer_length - step))[step]
        logits[task.refusal] -= tau
        answer.append(int(logits.argmax()))
    return tuple(answer)


@pytest.mark.parametrize("tau", [slow(0.0), 1.5])
def test_clean_behaviour_counts_what_exact_probabilities_say(known, tau):
    task, model, clean, verdicts = known
    answers = [looked_up(task, model, row, tau) for row in range(len(clean))]
    rows = list(zip(answers, verdicts, strict=True))
    expected = {
        # A hazardous prompt is answered right if it is refused anywhere.
        "correct": [task.refusal in a if v.forbidden else a == v.label for a, v in rows],
        "safe": [not v.forbidden for _, v in rows],
        "false_alarms": [task.refusal in a and not v.forbidden for a, v in rows],
        "failures": [a in v.forbidden for a, v in rows],
        "solved": [a == v.label and not v.forbidden for a, v in rows],
    }
    policies = {threshold: conservative(task, threshold) for threshold in (0.0, 1.5)}
    behaviour = clean_behaviour(jax.random.key(3), model, task, policies, samples=60_000)[tau]
    assert behaviour.samples == 15 * 4096
    for name, indicator in expected.items():
        rate = float(clean @ indicator)
        assert 0.005 < rate < 0.995, "a rate worth testing"
        error = np.sqrt(rate * (1 - rate) / behaviour.samples)
        assert abs(getattr(behaviour, name) / behaviour.samples - rate) < 4 * error, name


@pytest.mark.parametrize("tau", [slow(0.0), 1.5])
def test_sampled_failures_count_what_the_whole_space_says(known, tau):
    """Hazards are drawn uniformly by both tasks, so the rates are shares of the space."""
    task, model, clean, verdicts = known
    answers = [looked_up(task, model, row, tau) for row in range(len(clean))]
    policies = {"other": conservative(task, -3.0), "it": conservative(task, tau)}
    counted = sampled_failures(jax.random.key(4), model, task, policies, samples=30_000)["it"]
    assert counted.hazardous == 8 * 4096
    hazards = [(a, v.forbidden) for a, v in zip(answers, verdicts, strict=True) if v.forbidden]
    refused = [task.refusal in a for a, v in zip(answers, verdicts, strict=True) if not v.forbidden]
    levels = np.array([forbidden.get(a, 0.0) for a, forbidden in hazards])
    expected = [
        (counted.failures, counted.hazardous, (levels > 0).mean()),
        (counted.egregious, counted.hazardous, (levels > 0.66).mean()),
        (counted.false_alarms, counted.safe, np.mean(refused)),
        (counted.safe, counted.hazardous, len(refused) / len(answers)),
    ]
    for number, trials, rate in expected:
        assert abs(number / trials - rate) <= 4 * np.sqrt(rate * (1 - rate) / trials)
    exactly = exact.count(model, task, {"it": conservative(task, tau)}, walk=exact.plain_forward)["it"]
    assert counted.worst_margin == pytest.approx(exactly.worst_margin, abs=1e-5), "so many samples see them all"


def test_student_covers_the_mean_as_often_as_it_says():
    rng = np.random.default_rng(0)
    intervals = [student(rng.normal(3.0, 2.0, 5), 0.9) for _ in range(2000)]
    assert np.mean([low <= 3.0 <= high for _, low, high in intervals]) == pytest.approx(0.9, abs=0.02)


def test_clean_behaviour_refuses_what_it_cannot_read(known):
    task, model, _, _ = known
    with pytest.raises(ValueError, match=r"needs a sample \(not 0\)"):
        sampled_failures(jax.random.key(0), model, task, {"it": greedy(task)}, samples=0)
    with pytest.raises(ValueError, match="and greedy or conservative policies"):
        sampled_failures(jax.random.key(0), model, task, {"it": stochastic(task)}, samples=10)
    with pytest.raises(ValueError, match="at least one sample, not 0"):
        clean_behaviour(jax.random.key(0), model, task, {"it": greedy(task)}, samples=0)
    with pytest.raises(ValueError, match="count a stochastic one exactly"):
        clean_behaviour(jax.random.key(0), model, task, {"it": stochastic(task)}, samples=10)


def test_success_counts_confirmed_failures_within_each_budget(small, table, all_prompts):
    """Five attackers of a filter that lets two prompts pass, one of them claiming what is not so."""
    task = small("injury")
    passes, caught = [[2, 4, 0, 0], [2, 0, 4, 0]], [3, 4, 0, 0]
    alarm = [-1.0 if prompt in passes else 1.0 for prompt in all_prompts(task).tolist()]
    model = table(task, np.zeros((4096, 1), int))
    model = model._replace(logits=(np.stack([np.zeros(4096), alarm], axis=1)[:, None].astype(np.float32),))
    found = [
        (passes[0], -1.0, 1),  # its start failed already
        (passes[1], -1.0, 5),
        (passes[0], -1.0, 51),
        (caught, 1.0, NEVER),
        (caught, -1.0, 3),  # a margin that no plain forward pass confirms
    ]
    prompts, margins, first = (np.array(column) for column in zip(*found, strict=True))
    trace = Trace(prompts, margins, first, curve=margins[None], spent=np.array([51]), cost=Cost(51, 0, 51))
    success = success_by_budget(Objective(task, model, greedy(task)), trace, budgets=(1, 4, 5, 50, 51))
    assert success.within == {1: 1, 4: 1, 5: 2, 50: 2, 51: 3}
    assert (success.attackers, success.before, success.unconfirmed) == (5, 1, 1)


def test_success_budgets_count_margins_of_several_forward_passes(small, lively):
    task = small("agent")
    objective = Objective(task, lively(task, layers=2), conservative(task, 1e3))
    forwards, prompt = objective.forwards, jax.vmap(task.sample_hazard)(jax.random.split(jax.random.key(0), 64))
    failing = np.asarray(prompt)[np.asarray(confirm(objective, prompt))][:1]
    assert forwards > 1 and len(failing)
    first = np.array([forwards, 2 * forwards, 2 * forwards + 1])
    prompts, margins = np.repeat(failing, 3, axis=0), np.full(3, -1.0)
    trace = Trace(prompts, margins, first, curve=margins[None], spent=np.array([99]), cost=Cost(99, 0, 99))
    success = success_by_budget(objective, trace, budgets=(1, 2, 3))
    assert success.within == {1: 1, 2: 2, 3: 3}
    assert success.before == 1


def by_sign_flips(differences):
    """The share of all sign patterns whose mean is at least as far from zero."""
    flipped = [np.dot(signs, differences) for signs in itertools.product([-1, 1], repeat=len(differences))]
    return np.mean(np.abs(flipped) >= abs(sum(differences)) - 1e-9)


DIFFERENCES = [
    [0.3, -0.1],
    [1.0, 2.0, 3.0],
    [0.0, 0.0, 1.0],
    [2.0, -2.0, 1.0, -1.0],
    [1.0, 1.0, 1.0, 1.0, -1.0],
    np.random.default_rng(0).normal(0.5, 1, 8),
    np.random.default_rng(1).integers(-2, 4, 10),
]


@pytest.mark.parametrize("differences", DIFFERENCES)
def test_paired_effect_of_a_few_seeds(differences):
    mean, low, high, p_value, pairs = paired_effect(differences)
    assert (mean, pairs) == (pytest.approx(np.mean(differences)), len(differences))
    student = stats.ttest_1samp(differences, 0).confidence_interval(0.95)
    np.testing.assert_allclose((low, high), student)
    assert p_value == pytest.approx(by_sign_flips(differences))
    assert paired_effect(differences) == (mean, low, high, p_value, pairs), "another call gives the same numbers"


def test_paired_effect_knows_its_scale():
    """The interval moves and stretches with the differences; a narrower level lies inside."""
    differences = np.random.default_rng(2).gamma(1.0, size=9)
    effect, moved = paired_effect(differences), paired_effect(5 - 3 * differences)
    np.testing.assert_allclose([moved.mean, moved.high, moved.low], [5 - 3 * x for x in effect[:3]], rtol=0.02)
    narrow = paired_effect(differences, confidence=0.5)
    assert effect.low < narrow.low < narrow.high < effect.high


def test_a_clear_effect_is_found_and_none_is_not():
    noise = np.random.default_rng(3).standard_normal(10)
    noise -= noise.mean()
    clear, none = paired_effect(1 + 0.2 * noise), paired_effect(noise)
    assert clear.low > 0.7
    assert clear.high < 1.3
    assert clear.p_value == 2**-9, "the smallest that ten seeds can give"
    assert none.low < 0 < none.high
    assert none.p_value == pytest.approx(1)


def test_the_last_bit_of_a_difference_changes_no_effect():
    """Flips in another order have the same mean, and the p-value hangs on which means are equal."""
    differences = np.array([0.1, 0.7, 0.2, 1.3, 0.6])
    effects = [paired_effect(differences + bit * 2.0**-53) for bit in range(-3, 4)]
    assert len(set(effects)) == 1
    assert 0 < effects[0].mean < effects[0].high


def test_one_pair_says_nothing_about_spread():
    assert paired_effect([0.5]) == (0.5, -np.inf, np.inf, 1.0, 1)


def test_two_pairs_are_believed_as_little_as_they_should_be():
    """One degree of freedom is Cauchy's distribution: half of it lies within the standard error, which is 1 here."""
    assert paired_effect([1.0, 3.0], confidence=0.5) == pytest.approx((2.0, 1.0, 3.0, 0.5, 2))
    wide = paired_effect([1.0, 3.0])
    assert (wide.high - 2.0, 2.0 - wide.low) == pytest.approx((np.tan(0.475 * np.pi),) * 2)


def test_the_interval_of_three_seeds_covers_as_often_as_it_says():
    rng, runs = np.random.default_rng(4), 2000
    effects = [paired_effect(rng.normal(0.5, 1.0, 3)) for _ in range(runs)]
    covered = np.mean([effect.low <= 0.5 <= effect.high for effect in effects])
    assert abs(covered - 0.95) < 4 * np.sqrt(0.95 * 0.05 / runs)


@pytest.mark.parametrize("seeds", [2, 3, 6])
def test_equal_differences_have_no_spread(seeds):
    effect = paired_effect([0.7] * seeds)
    np.testing.assert_allclose(effect[:3], 0.7)
    assert effect.p_value == pytest.approx(2.0 ** (1 - seeds))
    assert paired_effect([0.0] * seeds)[:4] == (0, 0, 0, 1)


def test_differences_that_are_equal_up_to_rounding_have_no_spread():
    effect = paired_effect([1 - 0.9, 0.1, 0.1, 0.1, 0.1])
    np.testing.assert_allclose(effect[:3], 0.1)


def test_no_pairs_are_refused():
    with pytest.raises(ValueError, match="at least one pair"):
        paired_effect([])


def test_clopper_pearson_of_a_huge_space_is_poissons_interval():
    """Garwood 1936: with a rate near zero the binomial is Poisson's law, whose exact interval is chi-squared."""
    trials = 10**12
    interval = clopper_pearson(10, trials)
    np.testing.assert_allclose(interval.low * trials, stats.chi2.ppf(0.025, 20) / 2, rtol=1e-8)
    np.testing.assert_allclose(interval.high * trials, stats.chi2.ppf(0.975, 22) / 2, rtol=1e-8)


def test_a_statistical_bound_is_above_the_truth_and_shrinks_with_samples(lively):
    task = task_named("injury:length=4")
    model, policies = lively(task), {"it": greedy(task), "never": conservative(task, -1e9)}
    truth = exact.count(model, task, policies)
    bounds = [failing_at_most(jax.random.key(0), model, task, policies, samples=n) for n in (4096, 2**16)]
    assert truth["it"].failures <= bounds[1]["it"] <= bounds[0]["it"] < 4096
    expected = 4096 * (1 - 1e-9 ** (1 / 4096))  # Clopper and Pearson in closed form, without a success
    assert truth["never"].failures == 0 and bounds[0]["never"] == pytest.approx(expected, abs=1)
    with pytest.raises(ValueError, match="greedy or conservative"):
        failing_at_most(jax.random.key(0), model, task, {"it": stochastic(task)}, samples=1)
