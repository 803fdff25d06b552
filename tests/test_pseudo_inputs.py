"""Pseudo-inputs: the overseer against Bayes' rule, the ball, where the climb ends, and real prompts nearby."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import slow
from scipy import stats
from scipy.spatial.distance import mahalanobis

from tasks.cipher_vault import cipher_vault
from tasks.injury import injury
from testbed.training.losses import cross_entropy
from testbed.training.pseudo_inputs import (
    SEEN,
    SHRINKAGE,
    log_refuses,
    nearest_prompt,
    oversee,
    points_of,
    pseudo,
    pseudo_inputs,
    reach,
)

INJURY, VAULT = injury(length=4), cipher_vault(length=5, vocab=4)
GENERATOR = pytest.param(VAULT, marks=pytest.mark.slow, id="generator")
BOTH = pytest.mark.parametrize("task", [pytest.param(INJURY, id="classifier"), GENERATOR])
KEY = jax.random.key(0)


def clouds(number=400, features=3):
    """Two clouds of points `[number, features]`, one hazard in four, and which points are hazards."""
    rng = np.random.default_rng(0)
    mix, hazardous = rng.normal(size=(features, features)), np.arange(number) % 4 == 0
    points = rng.normal(size=(number, features)) @ mix + np.where(hazardous[:, None], 1.5, 0.0)
    return points.astype(np.float32), hazardous


def shrunk(points, hazardous):
    """The covariance within the two kinds, by numpy, shrunk as the overseer's."""
    within = sum(kind.mean() * np.cov(points[kind].T, bias=True) for kind in (hazardous, ~hazardous))
    return (1 - SHRINKAGE) * within + SHRINKAGE * np.trace(within) / len(within) * np.eye(len(within))


def test_the_overseer_is_bayes_rule_for_two_gaussians():
    points, hazardous = clouds()
    covariance = shrunk(points, hazardous)
    overseer = jax.jit(oversee)(points, hazardous)
    judged = jax.vmap(lambda point: overseer.log_hazardous(overseer.whiten(point)))(points)
    density = {
        kind: stats.multivariate_normal(points[kind_of].mean(axis=0), covariance).pdf(points) * kind_of.mean()
        for kind, kind_of in ((True, hazardous), (False, ~hazardous))
    }
    np.testing.assert_allclose(jnp.exp(judged), density[True] / (density[True] + density[False]), rtol=1e-3, atol=1e-5)


def test_whitened_coordinates_measure_mahalanobis_distances_and_lead_back():
    points, hazardous = clouds()
    overseer, inverse = jax.jit(oversee)(points, hazardous), np.linalg.inv(shrunk(points, hazardous))
    for point in points[:5]:
        u = overseer.whiten(point)
        np.testing.assert_allclose(jnp.linalg.norm(u), mahalanobis(point, points.mean(axis=0), inverse), rtol=1e-3)
        np.testing.assert_allclose(overseer.mean + overseer.root @ u, point, atol=1e-4)


@pytest.mark.parametrize("kind", [True, False])
def test_an_overseer_that_saw_one_kind_only_still_judges(kind):
    points, _ = clouds()
    overseer = jax.jit(oversee)(points, np.full(len(points), kind))
    sure = jnp.exp(overseer.log_hazardous(overseer.whiten(points[0])))
    assert sure > 0.99 if kind else sure < 0.01


@functools.partial(jax.jit, static_argnames=("task", "layer"))
def made(model, task, prompts, layer, eps):
    """Pseudo-inputs from prompts, where these were, and log P(refusal) there and here."""
    found = pseudo_inputs(KEY, model, task, prompts, layer=layer, eps=eps)
    refuses = [
        jax.vmap(functools.partial(log_refuses, model, task))(prompts, lat)
        for lat in (found.latents, 0 * found.latents)
    ]
    return found, points_of(model, task, prompts, layer), *refuses


@functools.partial(jax.jit, static_argnames="task")
def residuals(model, task, prompts):
    """Where prompts lead, before block 1."""
    return points_of(model, task, prompts, 1)


@functools.partial(jax.jit, static_argnames="task")
def nearest(model, task, points):
    """Real prompts near points before block 1, and how far they are."""
    return jax.vmap(lambda point: nearest_prompt(model, task, point, 1))(points)


def prompts_of(task, number=32):
    return jax.vmap(task.sample)(jax.random.split(jax.random.key(3), number))


@pytest.mark.parametrize(("task", "layer"), [(INJURY, 1), slow(VAULT, 0)])
def test_latents_lead_from_the_prompts_to_the_points_and_nowhere_else(task, layer, lively):
    found, start, _, _ = made(lively(task, layers=2), task, prompts_of(task), layer, 1.0)
    moved = found.latents[:, layer, : task.prompt_length]
    np.testing.assert_allclose(start + moved, found.points, atol=1e-4)
    assert not found.latents[:, layer, task.prompt_length :].any()
    assert not found.latents[:, [other for other in range(3) if other != layer]].any()


@pytest.mark.parametrize("layer", [-1, 3])
def test_a_layer_that_is_not_there_is_refused(layer, lively):
    with pytest.raises(ValueError, match=f"layer {layer} .*name layers from 0 .* to 2 "):
        made(lively(VAULT, layers=2), VAULT, prompts_of(VAULT), layer, 1.0)


def test_several_layers_are_refused(lively):
    with pytest.raises(ValueError, match=r"one layer.*not \(0, 1\)"):
        made(lively(VAULT, layers=2), VAULT, prompts_of(VAULT), (0, 1), 1.0)


@functools.partial(jax.jit, static_argnames=("task", "layer"))
def lengths(model, task, points, layer):
    """How far points `[B, T, D]` lie from the mean for the overseer of `made`, over the root of their features."""
    draws = jax.vmap(task.sample)(jax.random.split(KEY, SEEN * len(points)))
    seen = points_of(model, task, draws, layer).reshape(len(draws), -1)
    overseer = oversee(seen, jax.vmap(task.hazardous)(draws))
    whitened = jax.vmap(lambda point: overseer.whiten(point.ravel()))(points)
    return jnp.linalg.norm(whitened, axis=1) / seen.shape[1] ** 0.5


@BOTH
@pytest.mark.parametrize("eps", [0.0, 0.5, 1.0])
def test_the_climb_ends_within_the_ball_and_reaches_its_edge(eps, task, lively):
    model, prompts = lively(task, layers=2), prompts_of(task)
    far = lengths(model, task, made(model, task, prompts, 1, eps)[0].points, 1)
    assert far.max() == pytest.approx(eps, rel=1e-2, abs=1e-3)


@BOTH
def test_the_climb_ends_where_hazard_and_passing_are_likelier(task, lively):
    model, prompts = lively(task, layers=2), prompts_of(task)
    found, _, refuses, refused = made(model, task, prompts, 1, 1.0)
    risk = found.hazardous * -jnp.expm1(refuses)
    hazard = jax.vmap(task.hazardous)(prompts)
    assert risk.mean() > 2 * (hazard * -jnp.expm1(refused)).mean()
    assert found.hazardous.mean() > 0.8 > hazard.mean()


@BOTH
def test_the_loss_is_half_clean_and_half_refusing_there_as_far_as_the_overseer_is_sure(task, lively):
    """And its slope is that with the pseudo-inputs held where they are."""
    model, prompts = lively(task, layers=2), prompts_of(task)
    found, *_ = made(model, task, prompts, 1, 1.0)

    def spelled_out(model):
        refuses = jax.vmap(lambda prompt, latent: log_refuses(model, task, prompt, latent))(prompts, found.latents)
        return (cross_entropy(model, task, prompts) - (found.hazardous * refuses).mean()) / 2

    ours = jax.jit(jax.value_and_grad(lambda model: pseudo(1, 1.0).value(KEY, model, task, prompts)))(model)
    expected = jax.jit(jax.value_and_grad(spelled_out))(model)
    for mine, its in zip(jax.tree.leaves(ours), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(mine, its, rtol=1e-3, atol=1e-5)


@BOTH
def test_a_real_prompt_is_its_own_nearest(task, lively):
    model, prompts = lively(task, layers=2), prompts_of(task, 8)
    found, far = nearest(model, task, residuals(model, task, prompts))
    np.testing.assert_array_equal(found, prompts)
    np.testing.assert_allclose(far, 0, atol=1e-4)


def test_no_token_is_nearer_given_those_before_it_and_none_found_is_forbidden(lively, all_prompts):
    model, space = lively(VAULT, layers=2), all_prompts(VAULT)
    point = residuals(model, VAULT, prompts_of(VAULT, 1))[0] + 0.7
    found, far = (x[0] for x in nearest(model, VAULT, point[None]))
    assert (space == found).all(axis=1).any()
    away = np.linalg.norm(residuals(model, VAULT, space) - point, axis=-1)
    np.testing.assert_allclose(away[(space == found).all(axis=1)][0], far, atol=1e-4)
    for place, distance in enumerate(far):
        alike = (space[:, :place] == found[:place]).all(axis=1)
        np.testing.assert_allclose(distance, away[alike, place].min(), atol=1e-4)


def test_reach_says_zero_for_an_empty_ball_and_all_for_a_wide_one(lively):
    model = lively(INJURY, layers=2)
    nobody, everybody = (reach(KEY, model, INJURY, layer=1, eps=1.0, near=near, number=32) for near in (0.0, 100.0))
    assert (nobody.reachable, everybody.reachable) == (0, 1)
    assert nobody.far == everybody.far > 0
    assert 0 <= nobody.hazardous <= 1 and 0.5 < nobody.sure <= 1
