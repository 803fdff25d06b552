"""Perturbations of the residual stream: closed forms, the ball, what stays as it is, and exactly counted gradients."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import planted
import pytest
from conftest import slow
from reference import H, K, P, Q

from tasks.cipher_vault import cipher_vault
from tasks.injury import injury
from testbed.objective import Objective, margins_of
from testbed.policy import greedy
from testbed.training.defence import LOSSES, Relaxation
from testbed.training.latent import (
    USUAL_ASCENT,
    Ascent,
    anywhere,
    ascend,
    latent_failures,
    mean_norm,
    perturbations,
    towards_catastrophe,
    up_the_loss,
)
from testbed.training.losses import cross_entropy
from testbed.training.pseudo_inputs import SEEN

INJURY, VAULT = injury(length=4), cipher_vault(length=5, vocab=4)
GENERATOR = pytest.param(VAULT, marks=pytest.mark.slow, id="generator")
BOTH = pytest.mark.parametrize("task", [pytest.param(INJURY, id="classifier"), GENERATOR])
KEY = jax.random.key(0)


def test_a_linear_height_is_climbed_to_the_edge_of_the_ball_along_its_slope():
    slope = jax.random.normal(KEY, (3, 5)).at[1].set(0)
    delta = ascend(lambda delta: (slope * delta).sum(), jnp.zeros((3, 5)), 0.7)
    direction = slope / jnp.maximum(jnp.linalg.norm(slope, axis=-1, keepdims=True), 1e-9)
    np.testing.assert_allclose(delta, 0.7 * direction, atol=1e-5)  # 6 steps of 0.4 of the radius reach the edge


def test_the_ball_holds_each_token_apart():
    target = jnp.asarray([[0.1, 0.0], [30.0, 40.0]])
    delta = ascend(lambda delta: -((delta - target) ** 2).sum(), jnp.zeros((2, 2)), 1.0)
    assert (jnp.linalg.norm(delta, axis=-1) <= 1 + 1e-6).all()
    np.testing.assert_allclose(delta[1], [0.6, 0.8], atol=1e-5)


def prompts_of(task, number=6):
    return jax.vmap(task.sample_hazard)(jax.random.split(jax.random.key(3), number))


@pytest.mark.parametrize("layer", [slow(0), 1, slow(2)])
def test_residual_and_latent_speak_of_the_same_place(layer, lively):
    """Adding a latent before a block moves the answer as running on from the moved residual does."""
    prompt = prompts_of(VAULT)[0]
    soft, answer = jax.nn.one_hot(prompt, 4), VAULT.label(prompt)

    @jax.jit
    def both(model):
        x = model.residual(soft, answer, layer)
        delta = 0.3 * jax.random.normal(KEY, x.shape)
        latent = jnp.zeros((model.config.layers + 1, *x.shape)).at[layer].set(delta)
        x = x + delta
        for block in list(model.blocks)[layer:]:
            x = block(x, len(x))
        return model(soft, answer, latent), model.readout(x)[-len(answer) :]

    np.testing.assert_allclose(*both(lively(VAULT, layers=2)), atol=1e-4)


def test_the_radius_is_relative_to_the_norm_there(lively):
    model, prompts = lively(VAULT, layers=2), prompts_of(VAULT)
    one = jax.jit(lambda model, p: model.residual(jax.nn.one_hot(p, 4), VAULT.label(p), 1))
    expected = np.linalg.norm([one(model, p) for p in prompts], axis=-1).mean()
    measured = jax.jit(lambda model: mean_norm(model, VAULT, prompts, 1))(model)
    np.testing.assert_allclose(measured, expected, rtol=1e-5)


@BOTH
def test_perturbed_losses_lie_above_the_clean_one_and_gradients_above_noise(task, lively):
    model, prompts = lively(task, layers=1), prompts_of(task)

    @functools.partial(jax.jit, static_argnames="loss")
    def value(model, loss):
        return loss.value(KEY, model, task, prompts)

    clean, noisy = value(model, LOSSES["plain"](Relaxation(0, 0.0))), value(model, LOSSES["noise"](Relaxation(0, 0.2)))
    assert value(model, LOSSES["untargeted"](Relaxation(0, 0.2))) > max(noisy, clean)
    np.testing.assert_allclose(value(model, LOSSES["untargeted"](Relaxation(0, 0.0))), clean, rtol=1e-5)


@pytest.mark.parametrize("name", [name for name in LOSSES if name != "plain"])
def test_a_relaxed_loss_is_partly_clean_by_its_weight(name, lively):
    model, prompts = lively(INJURY, layers=1), prompts_of(INJURY, 4)

    def value(weight):
        return LOSSES[name](Relaxation(0, 0.2, Ascent(1), weight=weight)).value(KEY, model, INJURY, prompts)

    clean, relaxed = cross_entropy(model, INJURY, prompts), value(1.0)
    assert abs(relaxed - clean) > 1e-4
    for weight in (0.25, 0.5):
        np.testing.assert_allclose(value(weight), (1 - weight) * clean + weight * relaxed, rtol=1e-5)


def perturbed(perturb, layer, eps, model, task, prompts):
    made = jax.jit(
        lambda model, prompts: perturbations(KEY, model, task, prompts, perturb=perturb, layer=layer, eps=eps)
    )
    return made(model, prompts)


@pytest.mark.parametrize("layer", [-1, 3, (0, 3), (-1, 1)])
def test_a_layer_that_is_not_there_is_refused(layer, lively):
    """A perturbation there would change nothing, or the wrong layer, and nobody would know."""
    model, prompts = lively(VAULT, layers=2), prompts_of(VAULT)
    with pytest.raises(ValueError, match=rf"layer {re.escape(str(layer))} .*name layers from 0 .* to 2 "):
        perturbed(anywhere, layer, 0.5, model, VAULT, prompts)


def test_one_sided_moves_hazards_towards_the_catastrophe_and_leaves_the_rest(lively):
    model = lively(INJURY, layers=1)
    prompts = jnp.asarray([[K, P, Q, Q], [Q, Q, Q, Q], [H, P, K, P]])
    latents = perturbed(towards_catastrophe, 1, 0.5, model, INJURY, prompts)
    moved = jnp.abs(latents).max(axis=(1, 2, 3)) > 0
    assert moved.tolist() == [True, False, True]

    @jax.jit
    def margin(prompt, latent):
        return Objective(INJURY, lambda soft, answer: model(soft, answer, latent), greedy(INJURY)).margin(prompt)

    for prompt, latent in zip(prompts[::2], latents[::2], strict=True):
        assert margin(prompt, latent) < margin(prompt, 0 * latent)


@pytest.mark.parametrize("layer", [slow(0), 2])
def test_noise_has_the_norm_of_the_radius_at_its_layer_and_nowhere_else(layer, lively):
    model, prompts = lively(INJURY, layers=2), prompts_of(INJURY)
    norms = jnp.linalg.norm(perturbed(anywhere, layer, 0.5, model, INJURY, prompts), axis=-1)
    radius = 0.5 * jax.jit(lambda model: mean_norm(model, INJURY, prompts, layer))(model)
    np.testing.assert_allclose(norms[:, layer], radius, rtol=1e-4)
    assert not norms[:, [other for other in range(3) if other != layer]].any()


def test_several_layers_are_perturbed_at_once_each_within_its_own_ball(lively):
    model, prompts = lively(VAULT, layers=2), prompts_of(VAULT)
    norms = jnp.linalg.norm(perturbed(up_the_loss, (0, 1, 2), 0.5, model, VAULT, prompts), axis=-1)
    radii = [0.5 * float(jax.jit(lambda m, at=at: mean_norm(m, VAULT, prompts, at))(model)) for at in range(3)]
    for layer, radius in enumerate(radii):
        assert 0.9 * radius < norms[:, layer].max() <= 1.001 * radius


@pytest.mark.slow
def test_two_layers_at_once_hurt_more_than_the_worse_of_them(lively):
    model, prompts = lively(VAULT, layers=2), prompts_of(VAULT)
    value = jax.jit(
        lambda model, at: LOSSES["untargeted"](Relaxation(at, 0.2)).value(KEY, model, VAULT, prompts), static_argnums=1
    )
    assert value(model, (0, 2)) > max(value(model, at) for at in (0, 2))


@BOTH
def test_latent_failures_are_the_failures_at_radius_zero_and_more_beyond(task, lively):
    model, prompts = lively(task, layers=2), prompts_of(task, 64)
    fails = margins_of(Objective(task, model, greedy(task)), prompts) <= 0
    counts = []
    for eps in (0.0, 0.3, 5.0):
        moved = latent_failures(KEY, model, task, prompts, layer=1, eps=eps)
        assert not (fails & ~moved).any()
        counts.append(int(moved.sum()))
    assert counts[0] == int(fails.sum()) < counts[-1]
    drawn, safe = jax.jit(jax.vmap(lambda key: (p := task.sample(key), ~task.hazardous(p))))(jax.random.split(KEY, 64))
    assert safe.any() and not latent_failures(KEY, model, task, drawn, layer=1, eps=5.0)[safe].any()


ALONE = ("plain", "soft")  # counted unlike "untargeted", whose case has three layers


@pytest.mark.parametrize(
    ("name", "layer"), [*((name, 1) if name in ALONE else slow(name, 1) for name in LOSSES), ("untargeted", (0, 1, 2))]
)
def test_a_step_takes_exactly_the_gradients_and_forward_passes_that_it_is_charged_for(name, layer, lively):
    ear, prompts, loss = planted.Ear(), prompts_of(INJURY, 4), LOSSES[name](Relaxation(layer, 0.3))
    model = ear.model(lively(INJURY, layers=2 if layer != 1 else 1))
    jax.block_until_ready(jax.jit(jax.grad(loss.value, 1), static_argnums=2)(KEY, model, INJURY, prompts))
    jax.effects_barrier()
    assert ear.calls["gradient"] == len(prompts) * loss.gradients_on(INJURY)
    assert ear.calls["model"] == len(prompts) * loss.forwards
    assert loss.forwards == {"plain": 0, "pseudo": 1 + SEEN}.get(name, len(np.atleast_1d(layer)) * (not loss.overseen))
    assert loss.gradients_on(INJURY) == {"plain": 1, "noise": 2}.get(name, USUAL_ASCENT.steps + 2)
