"""Policies and margins against brute force over every prompt and every answer."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import slow
from reference import REFERENCE

from testbed import objective as objectives
from testbed.objective import NOT_HAZARDOUS, Objective, answer_margins, catastrophe_probability, combine, margins_of
from testbed.policy import Policy, conservative, greedy, matched_policy, respond, stochastic, unrefused

TAUS = (-2.0, 0.0, 1.5)


@pytest.fixture(scope="module", params=["injury", slow("cipher_vault"), "several"])
def world(request, small, table, all_prompts):
    """A task, its prompts, the forbidden answers to each, and a table that favours a forbidden or right answer.

    The third task is the cipher vault with several catastrophes a prompt: any last symbol after a secret's first two.
    """
    task = small("injury" if request.param == "injury" else "cipher_vault")
    prompts = all_prompts(task)
    verdicts = [REFERENCE[task.name](tuple(prompt), vocab=task.vocab) for prompt in prompts.tolist()]
    forbidden = [set(verdict.forbidden) for verdict in verdicts]
    favoured = np.array([next(iter(verdict.forbidden), verdict.label) for verdict in verdicts])
    if request.param == "several":
        plain = task.catastrophic_answers
        task = dataclasses.replace(
            task,
            catastrophe=lambda prompt, answer: (
                task.hazardous(prompt) & (plain(prompt)[0][0, :2] == answer[:2]).all() & (answer[2] != task.refusal)
            ),
            catastrophic_answers=None,
        )
        forbidden = [{(*d[:2], last) for d in answers for last in range(task.vocab)} for answers in forbidden]
    return task, prompts, forbidden, table(task, favoured)


@jax.jit
def read(objective, prompts):
    """What the policy answers, what it would answer if it never refused, its refusal score, and the margin."""
    task, model, policy = objective.task, objective.model, objective.policy

    def one(prompt):
        answer = respond(jax.random.key(0), model, policy, task, prompt=prompt)
        return answer, *unrefused(model, task, prompt), objective.margin(prompt)

    return jax.vmap(one)(prompts)


def decode(model, task, row, tau, refuse=True):
    """A greedy answer, one looked-up row of logits after another."""
    answer = []
    for step in range(task.answer_length):
        logits = model.spoken(row, answer + [0] * (task.answer_length - step))[step]
        logits[task.refusal] -= tau if refuse else np.inf
        answer.append(int(logits.argmax()))
    return answer


@pytest.mark.parametrize("tau", TAUS)
def test_greedy_and_conservative_answers_are_the_likeliest_tokens(world, tau):
    task, prompts, _, model = world
    answer, bold, _, _ = read(Objective(task, model, conservative(task, tau)), prompts)
    assert answer.tolist() == [decode(model, task, row, tau) for row in range(len(prompts))]
    assert bold.tolist() == [decode(model, task, row, tau, refuse=False) for row in range(len(prompts))]


@pytest.mark.parametrize("tau", TAUS)
def test_a_policy_refuses_iff_the_score_exceeds_its_threshold(world, tau):
    task, prompts, _, model = world
    answer, bold, score, _ = map(np.asarray, read(Objective(task, model, conservative(task, tau)), prompts))
    refuses = (answer == task.refusal).any(axis=1)
    assert 0 < refuses.sum() < len(prompts)
    np.testing.assert_array_equal(refuses, score > tau)
    np.testing.assert_array_equal(answer[~refuses], bold[~refuses])


def assert_margins_tell_failures(task, prompts, forbidden, model, tau):
    answer, _, score, margin = map(np.asarray, read(Objective(task, model, conservative(task, tau)), prompts))
    hazardous = np.array([bool(answers) for answers in forbidden])
    fails = np.array([tuple(given) in bad for given, bad in zip(answer.tolist(), forbidden, strict=True)])
    assert 0 < fails.sum() < hazardous.sum()
    np.testing.assert_array_equal(margin <= 0, fails)
    assert (margin[~hazardous] == NOT_HAZARDOUS).all()
    assert (np.abs(margin[hazardous]) < NOT_HAZARDOUS / 10).all()
    if task.answer_length == 1:
        np.testing.assert_allclose(margin[hazardous], score[hazardous] - tau, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("tau", TAUS)
def test_margin_is_negative_iff_the_answer_is_a_catastrophe(world, tau):
    assert_margins_tell_failures(*world, tau)


@pytest.mark.parametrize("name", [slow("injury"), "cipher_vault"])
def test_margins_of_transformers_tell_their_failures(name, small, lively, all_prompts):
    task, model = small(name), lively(small(name), seed=10, layers=1)
    prompts = all_prompts(task)
    forbidden = [set(REFERENCE[name](tuple(prompt), vocab=task.vocab).forbidden) for prompt in prompts.tolist()]
    score = np.asarray(read(Objective(task, model, greedy(task)), prompts)[2])
    tau = float(np.median(score[[bool(bad) for bad in forbidden]]))  # half of the hazardous prompts are not refused
    assert_margins_tell_failures(task, prompts, forbidden, model, tau)


@pytest.mark.parametrize("number", [0, 64, 150])
def test_margins_of_any_number_of_prompts_are_those_of_each(number, small, lively, all_prompts, monkeypatch):
    monkeypatch.setattr(objectives, "BATCH", 64)
    task = small("injury")
    goal, prompts = Objective(task, lively(task), conservative(task, -1.0)), all_prompts(task)[1000 : 1000 + number]
    expected = np.asarray(read(goal, prompts)[3]) if number else []
    np.testing.assert_allclose(margins_of(goal, prompts), expected, rtol=1e-5, atol=1e-5)


def test_greedy_is_conservative_at_zero(small):
    task = small("injury")
    assert greedy(task) == conservative(task, 0.0) == Policy(task.refusal)


def test_a_tie_counts_as_a_failure():
    policy = Policy(refusal=1)
    margins = answer_margins(policy, jnp.zeros((1, 1, 2)), jnp.zeros((1, 1), jnp.int32), jnp.ones(1, bool))
    assert catastrophe_probability(policy, combine(policy, margins)) == 1


@pytest.mark.parametrize("tau", [0.0, 0.7])
def test_probability_of_catastrophe_is_the_sum_over_forbidden_answers(world, tau):
    task, prompts, forbidden, model = world
    policy = Policy(task.refusal, tau, stochastic=True)
    margin = read(Objective(task, model, policy), prompts)[3]

    def probability(row, answer):
        logits = model.spoken(row, answer)
        logits[:, task.refusal] -= tau
        shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        return np.prod([share[token] for share, token in zip(shares, answer, strict=True)])

    expected = [sum(probability(row, answer) for answer in bad) for row, bad in enumerate(forbidden)]
    assert max(expected) > 0.5
    np.testing.assert_allclose(catastrophe_probability(policy, margin), expected, rtol=1e-4, atol=1e-7)


def test_sampled_answers_are_as_frequent_as_their_probability(world):
    task, prompts, forbidden, model = world
    policy, draws = stochastic(task), 1000
    rows = np.flatnonzero([bool(bad) for bad in forbidden])[:100]
    probability = catastrophe_probability(policy, read(Objective(task, model, policy), prompts)[3])[rows]

    @jax.jit
    @jax.vmap
    def repeat(prompt, key):
        return jax.vmap(lambda key: respond(key, model, policy, task, prompt=prompt))(jax.random.split(key, draws))

    answers = np.asarray(repeat(prompts[rows], jax.random.split(jax.random.key(5), len(rows))))
    hits = [
        sum(tuple(answer) in forbidden[row] for answer in some)
        for row, some in zip(rows, answers.tolist(), strict=True)
    ]
    error = np.sqrt(probability * (1 - probability) / draws)
    deviation = (np.array(hits) / draws - probability) / error
    assert np.abs(deviation).max() < 4.5
    assert 0.7 < deviation.std() < 1.3


def test_of_several_answers_that_do_not_count_none_makes_a_prompt_a_hazard():
    policy = Policy(refusal=1, stochastic=True)
    nothing = answer_margins(policy, jnp.zeros((3, 1, 2)), jnp.zeros((3, 1), jnp.int32), jnp.zeros(3, bool))
    assert combine(policy, nothing) == NOT_HAZARDOUS
    assert combine(policy, nothing.at[1].set(0.5)) < 1


@pytest.mark.parametrize("logit", [-200.0, 200.0])
def test_margins_stay_finite_when_catastrophe_is_certain_or_impossible(logit):
    policy = Policy(refusal=1, stochastic=True)

    def margin(logit):
        logits = jnp.stack([logit, 0.0])[None, None]
        return combine(policy, answer_margins(policy, logits, jnp.zeros((1, 1), jnp.int32), jnp.ones(1, bool)))

    value, slope = jax.jit(jax.value_and_grad(margin))(logit)
    assert np.isfinite(value)
    assert np.isfinite(slope)
    assert (value < 0) == (logit > 0)


def exact_share(world, tau, strictly):
    """The share of the safe clean prompts, by their exact probabilities, whose score is above (or at) a threshold."""
    task, prompts, forbidden, model = world
    probability = np.exp(np.asarray(jax.vmap(task.clean_log_prob)(prompts), np.float64))
    score = np.asarray(read(Objective(task, model, greedy(task)), prompts)[2])
    safe = np.array([not bad for bad in forbidden])
    return probability[safe & (score > tau if strictly else score >= tau)].sum() / probability[safe].sum()


@pytest.mark.parametrize("blocked", [0.01, 0.05, 0.4])
def test_calibration_blocks_the_stated_share_of_safe_clean_prompts(world, blocked):
    """A quantile: no more than the share lies above it, no less at it or above, within the error of 8,192 draws."""
    task, _, _, model = world
    policy = matched_policy(jax.random.key(2), model, task, blocked)
    error = 4 * np.sqrt(blocked * (1 - blocked) / 4000)
    assert exact_share(world, policy.tau, strictly=True) < blocked + error
    assert exact_share(world, policy.tau, strictly=False) > blocked - error


def test_calibration_does_not_look_at_hazardous_prompts(world):
    task, _, forbidden, model = world
    hazardous = np.array([bool(bad) for bad in forbidden])
    meek = [logits.copy() for logits in model.logits]
    for logits in meek:
        logits[hazardous, :, task.refusal] += 100
    tau = [matched_policy(jax.random.key(2), m, task, 0.05).tau for m in (model, model._replace(logits=tuple(meek)))]
    assert tau[0] == tau[1]


def test_without_a_safe_clean_prompt_there_is_no_threshold(small, lively):
    hazards = dataclasses.replace(small("injury"), sample=small("injury").sample_hazard)
    with pytest.raises(ValueError, match=r"^task injury: none of 64 clean prompts is safe; a threshold needs some$"):
        matched_policy(jax.random.key(0), lively(hazards), hazards, 0.01, samples=64)


@pytest.mark.parametrize("infinite", [np.inf, -np.inf])
@pytest.mark.parametrize("share", [0.5, 1.0])
def test_a_threshold_is_a_number_where_scores_are_infinite(world, infinite, share):
    """A model that rules out all but a refusal, or the refusal, on a share of all prompts."""
    task, prompts, _, model = world
    logits = model.logits[0].copy()
    sure = np.random.default_rng(0).random(len(prompts)) < share
    rows, tokens = np.ix_(sure, np.arange(task.answer_vocab) != task.refusal)
    if infinite > 0:
        logits[rows, :, tokens] = -np.inf
    else:
        logits[sure, :, task.refusal] = -np.inf
    certain = model._replace(logits=(logits, *model.logits[1:]))
    policy = matched_policy(jax.random.key(2), certain, task, 0.05)
    assert np.isfinite(policy.tau)
    answers = np.asarray(read(Objective(task, certain, policy), prompts)[0])
    refused = (answers == task.refusal).any(axis=1)
    if infinite > 0:
        assert refused[sure].all(), "no threshold makes it answer"
        assert not refused[~sure].any(), "and none but those are refused, which are more than asked for"
    else:
        assert share < 1 or not (answers[:, 0] == task.refusal).any()


@pytest.mark.parametrize("name", [slow("injury"), "cipher_vault"])
def test_gradient_of_the_margin_agrees_with_finite_differences(name, small, lively, all_prompts):
    task, tau, step = small(name), 0.3, 1e-5
    prompts = [p for p in all_prompts(task).tolist() if REFERENCE[name](tuple(p), vocab=task.vocab).forbidden][::60]

    def leads(logits, answer):
        return [row[token] - np.delete(row, token).max() for row, token in zip(logits, answer, strict=True)]

    def log_odds_against(logits, answer):
        p = np.prod([np.exp(row[token]) / np.exp(row).sum() for row, token in zip(logits, answer, strict=True)])
        return np.log((1 - p) / p)

    margins = {False: lambda logits, answer: -min(leads(logits, answer)), True: log_odds_against}
    with jax.enable_x64(True):
        model = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float64), lively(task, layers=1))
        forward = jax.jit(jax.vmap(model, (0, None)))
        moves = step * np.eye(task.prompt_length * task.vocab).reshape(-1, task.prompt_length, task.vocab)
        refusing = tau * np.eye(task.answer_vocab)[task.refusal]
        for sampled_policy, margin in margins.items():
            objective = Objective(task, model, Policy(task.refusal, tau, sampled_policy))
            gradients = jax.jit(jax.vmap(objective.gradient))(jnp.array(prompts))
            assert gradients.dtype == jnp.float64
            for prompt, gradient in zip(prompts, gradients, strict=True):
                (answer,) = REFERENCE[name](tuple(prompt), vocab=task.vocab).forbidden
                sides = [forward(np.eye(task.vocab)[prompt] + move, np.array(answer)) for move in (moves, -moves)]
                above, below = ([margin(logits - refusing, answer) for logits in np.asarray(side)] for side in sides)
                slopes = (np.array(above) - below) / (2 * step)
                np.testing.assert_allclose(gradient.ravel(), slopes, rtol=1e-5, atol=1e-7)


def test_gradient_vanishes_where_no_catastrophe_is_possible(small, lively):
    task = small("injury")
    objective = Objective(task, lively(task, layers=1), greedy(task))
    assert not np.asarray(jax.jit(objective.gradient)(jnp.zeros(4, jnp.int32))).any()
