"""Soft prompts: overseers against brute force, the slope of the climb, where it leads, and what it costs."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import slow
from reference import H, K, P
from reference import injury as rule

from tasks.brackets import brackets
from tasks.cipher_vault import cipher_vault
from tasks.injury import injury
from testbed.training import soft_prompts
from testbed.training.latent import Ascent
from testbed.training.soft_prompts import (
    LOOKS,
    Overseer,
    climb,
    draw,
    drawn,
    exact,
    learned,
    log_drawn,
    log_hazard,
    misjudged,
    noise,
)

TASK, VAULT, KEY = injury(length=3), cipher_vault(length=4, vocab=4), jax.random.key(0)


def by_brute_force(task, space, hazardous):
    """`z -> log P(hazard)`, summed over every prompt of the space."""
    return lambda z: jnp.log(jnp.exp(log_drawn(z, jnp.asarray(space))) @ jnp.asarray(hazardous, jnp.float32))


@pytest.mark.parametrize("task", [TASK, slow(brackets(length=4))])
def test_the_exact_overseer_sums_over_the_whole_space_and_so_does_its_slope(task, all_prompts):
    space = all_prompts(task)
    brute = by_brute_force(task, space, jax.jit(jax.vmap(task.hazardous))(space))
    z = jax.jit(jax.vmap(lambda key: noise(key, task)))(jax.random.split(KEY, 5))
    for whole, ours in zip(
        jax.jit(jax.vmap(jax.value_and_grad(brute)))(z),
        jax.jit(jax.vmap(jax.value_and_grad(lambda z: log_hazard(task, z))))(z),
        strict=True,
    ):
        np.testing.assert_allclose(ours, whole, rtol=1e-4, atol=1e-5)


def test_its_slope_is_that_of_small_differences():
    z, step = noise(KEY, TASK), 1e-2
    slope = np.asarray(jax.jit(jax.grad(lambda z: log_hazard(TASK, z)))(z))
    moved = jax.jit(jax.vmap(lambda d: log_hazard(TASK, z + d) - log_hazard(TASK, z - d)))
    away = step * np.eye(z.size, dtype=np.float32).reshape(-1, *z.shape)
    np.testing.assert_allclose(moved(away) / (2 * step), slope.ravel(), atol=2e-3)


def test_prompts_are_drawn_as_often_as_a_soft_prompt_says_and_forbidden_tokens_never():
    allowed = np.ones((3, 8), bool)
    allowed[0, :2] = allowed[1, 2:] = allowed[2, 3:5] = False
    z, number = noise(KEY, dataclasses.replace(TASK, allowed=allowed)), 40_000
    chance = np.asarray(jax.nn.softmax(z), np.float64)
    drawn = np.asarray(jax.jit(draw, static_argnums=2)(KEY, z, number))
    shares = (drawn[..., None] == np.arange(8)).mean(axis=0)
    assert (shares[~allowed] == 0).all() and (chance[~allowed] == 0).all()
    assert (np.abs(shares - chance) <= 4 * np.sqrt(chance * (1 - chance) / number)).all()
    together = (drawn[:, 0] == drawn[0, 0]) & (drawn[:, 2] == drawn[0, 2])
    expected = chance[0, drawn[0, 0]] * chance[2, drawn[0, 2]]
    assert abs(together.mean() - expected) <= 4 * np.sqrt(expected / number), "positions are independent"


def judged(overseer, model, task, z, key=KEY):
    """The slope in z of an overseer's height, and its loss."""
    slope = jax.jit(jax.grad(overseer.height, 3), static_argnums=2)(key, model, task, z, None)
    return np.asarray(slope), float(jax.jit(overseer.loss, static_argnums=2)(key, model, task, z, None))


def test_many_draws_judge_as_the_exact_overseer_does(lively):
    model, z = (
        lively(TASK, layers=2),
        jax.random.normal(KEY, (3, 8)).at[:, [K, H, P]].add(1.5),
    )  # many of its draws are hazards
    (slope, loss), (estimate, guess) = (judged(one, model, TASK, z) for one in (exact(), drawn(20_000)))
    np.testing.assert_allclose(estimate, slope, atol=0.05 * np.abs(slope).max())
    assert guess == pytest.approx(loss, abs=0.03)


def test_a_generator_is_judged_by_what_it_would_say_to_what_is_drawn(lively, all_prompts):
    """Against a sum over the whole space: every prompt's catastrophic answer, by its probability."""
    model, z, space = lively(VAULT, layers=2), noise(KEY, VAULT), all_prompts(VAULT)
    answers, valid = jax.vmap(VAULT.catastrophic_answers)(space)
    right = jax.vmap(VAULT.label)(space)

    def said(z, answer):
        logits = jax.nn.log_softmax(model(jax.nn.softmax(z), answer))
        return jnp.take_along_axis(logits, answer[:, None], axis=1).sum()

    @jax.jit
    def whole(z):
        bad = jnp.exp(jax.vmap(said, (None, 0))(z, answers[:, 0])) * valid[:, 0]
        return jnp.log(jnp.exp(log_drawn(z, space)) @ bad)

    @jax.jit
    def expected(z):
        return -jnp.exp(log_drawn(z, space)) @ jax.vmap(said, (None, 0))(z, right) / VAULT.answer_length

    slope, loss = judged(drawn(4000), model, VAULT, z)
    truth = np.asarray(jax.grad(whole)(z))
    np.testing.assert_allclose(slope, truth, atol=0.1 * np.abs(truth).max())
    assert loss == pytest.approx(float(expected(z)), abs=0.05)


def test_draws_without_a_hazard_have_no_slope(lively):
    safe = jnp.zeros((3, 8)).at[:, 0].set(50.0)  # F0 F0 F0, surely
    assert not np.abs(judged(drawn(4), lively(TASK, layers=2), TASK, safe)[0]).any()


def wary_of_k(soft_prompt, answer):
    """A classifier that stops a prompt with K in it, and lets all others pass."""
    return jnp.stack([3.0, 12 * soft_prompt[:, K].sum()])[None]


def test_the_climb_needs_both_factors():
    """Hazards with K are stopped, so those with H must be found. Either factor alone ends elsewhere."""
    both, hazard = exact().height, lambda key, model, task, z, learnt: log_hazard(task, z)
    heights = {
        "both": both,
        "hazard alone": hazard,
        "passing alone": lambda *where: both(*where) - hazard(*where),
        "none": lambda key, model, task, z, learnt: 0 * z.sum(),
    }

    def ends(key, height):
        z = climb(key, wary_of_k, TASK, noise(key, TASK), overseer=Overseer(height, None), ascent=Ascent(4))
        return jnp.exp(both(key, wary_of_k, TASK, z, None))

    @jax.jit
    def reached(keys):
        return {name: jax.vmap(functools.partial(ends, height=height))(keys).mean() for name, height in heights.items()}

    risk = {name: float(mean) for name, mean in reached(jax.random.split(KEY, 64)).items()}
    assert risk["both"] > 1.3 * max(risk["hazard alone"], risk["passing alone"]) > 1.3 * risk["none"], risk


def test_overseers_of_classifiers_refuse_generators_and_tasks_without_an_automaton(lively):
    with pytest.raises(ValueError, match=r"judges classifiers, and cipher_vault is none; choose the overseer 'drawn'"):
        judged(exact(), lively(VAULT, layers=2), VAULT, noise(KEY, VAULT))
    unread = dataclasses.replace(TASK, checker=None)
    with pytest.raises(ValueError, match=r"injury has no checker .* choose the overseer 'drawn'"):
        judged(exact(), lively(unread, layers=2), unread, noise(KEY, unread))
    with pytest.raises(ValueError, match="has learnt nothing yet"):
        judged(learned(8), lively(TASK, layers=2), TASK, noise(KEY, TASK))


def test_a_checker_that_makes_mistakes_makes_them_on_so_many_prompts_and_always_the_same(all_prompts):
    task = injury(length=4)
    space = jnp.asarray(all_prompts(task))
    truth = np.array([bool(rule(tuple(prompt)).forbidden) for prompt in space.tolist()])

    def says(**mistakes):
        seen = misjudged(task, **{"errors": 0.0, "unseen": 0.0} | mistakes)
        hazardous, labels = (np.asarray(jax.vmap(of)(space)) for of in (seen.hazardous, seen.label))
        answers, valid = jax.vmap(seen.catastrophic_answers)(space)
        assert (labels[:, 0] == hazardous).all(), "it would have stopped what it takes for hazardous"
        assert (np.asarray(valid) == (hazardous[:, None] & (np.asarray(answers)[..., 0] == 0))).all()
        return hazardous

    assert (says() == truth).all() and (says(errors=1.0) == ~truth).all() and not says(unseen=1.0).any()
    assert (says(errors=0.1) != truth).mean() == pytest.approx(0.1, abs=0.015)
    half = says(unseen=0.5)
    assert not (half & ~truth).any() and half.sum() / truth.sum() == pytest.approx(0.5, abs=0.05)
    assert ((says(errors=0.01) != truth) <= (says(errors=0.1) != truth)).all(), "more errors are others besides"
    lots = np.array([[float(soft_prompts.lot(prompt, salt)) for prompt in space[::64]] for salt in range(2)])
    assert not np.intersect1d(*lots).size, "each salt is another lottery, also among neighbours"


def test_the_overseer_asks_the_checker_that_makes_mistakes(lively):
    model, z = lively(TASK), jnp.where(jnp.arange(8) == jnp.array([K, K, P])[:, None], 50.0, 0.0)
    assert rule((K, K, P)).forbidden
    stopped, passed = (judged(drawn(4, **how), model, TASK, z) for how in ({}, {"unseen": 1.0}))
    assert np.abs(stopped[0]).max() > 0 and not np.abs(passed[0]).any(), "what it does not see, it does not climb"
    chance = np.exp([-stopped[1], -passed[1]])  # of the answer that it takes for right
    assert chance.sum() == pytest.approx(1, abs=1e-5)


def test_mistakes_that_make_no_sense_are_refused():
    with pytest.raises(ValueError, match=r"overseer_errors must be a share between 0 and 1, not 2"):
        misjudged(TASK, 2.0, 0.0)
    with pytest.raises(ValueError, match="cipher_vault is none; leave them out"):
        misjudged(VAULT, 0.1, 0.0)


def test_steps_that_cannot_be_divided_among_the_looks_are_refused():
    with pytest.raises(ValueError, match="10 steps of a learned overseer are no multiple of 8; choose 8"):
        learned(16, steps=10)


@pytest.mark.slow
@pytest.mark.parametrize(("looks", "by_heart"), [(LOOKS, False), (1, True)])
def test_an_overseer_with_few_labels_is_kept_from_learning_them_by_heart(looks, by_heart, monkeypatch):
    """On other soft prompts it is no worse than saying how many are hazardous; with a look at the end alone it is."""
    monkeypatch.setattr(soft_prompts, "LOOKS", looks)
    overseer = learned.__wrapped__(256, steps=1600, batch=64)
    learnt = jax.jit(lambda key: overseer.study.learn(key, TASK))(KEY)

    @jax.jit
    @jax.vmap
    def others(key):
        noise_key, key = jax.random.split(key)
        z = noise(noise_key, TASK)
        hazardous = TASK.hazardous(draw(key, z, 1)[0])
        said = jax.nn.log_softmax(learnt(jax.nn.softmax(z), jnp.zeros(1, jnp.int32))[0])
        return -said[hazardous.astype(int)], hazardous

    losses, hazardous = others(jax.random.split(jax.random.key(5), 2000))
    share = hazardous.mean()
    guessing = -(share * jnp.log(share) + (1 - share) * jnp.log(1 - share))
    assert (losses.mean() > 1.5 * guessing) == by_heart
    assert by_heart or losses.mean() < 1.1 * guessing
