"""The transformer against a plain numpy one, and its causality through gradients."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from testbed.model import ModelConfig, Transformer, model_config

NAMES = ("injury", "cipher_vault")  # a classifier and a generator


def random_input(task, layers, seed=0):
    """A relaxed prompt, an answer and a latent perturbation."""
    rng = np.random.default_rng(seed)
    soft = rng.dirichlet(np.ones(task.vocab), task.prompt_length).astype(np.float32)
    answer = rng.integers(0, task.answer_vocab, task.answer_length)
    positions = task.prompt_length + task.answer_length - 1
    latent = rng.standard_normal((layers + 1, positions, 8)).astype(np.float32)
    return soft, answer, latent


def numbers(parameter):
    return np.asarray(parameter[...], np.float64)


def by_hand(model, soft_prompt, answer, latent):
    """The forward pass as the docstrings tell it, in float64, one head and one position after another."""

    def norm(layer, x):
        centred = x - x.mean(axis=-1, keepdims=True)
        spread = np.sqrt((centred**2).mean(axis=-1, keepdims=True) + 1e-6)
        return centred / spread * numbers(layer.scale) + numbers(layer.bias)

    def affine(layer, x):
        return x @ numbers(layer.kernel) + numbers(layer.bias)

    config = model.config
    x = soft_prompt.astype(np.float64) @ numbers(model.prompt_embedding.kernel)
    for token in answer[:-1]:
        x = np.vstack([x, numbers(model.answer_embedding.embedding)[token]])
    x = x + numbers(model.position)
    size = config.width // config.heads
    for block, push in zip(model.blocks, latent, strict=False):
        x = x + push
        normed = norm(block.norm_attention, x)
        queries, keys, values = (normed @ numbers(p.kernel) for p in (block.query, block.key, block.value))
        attended = np.zeros_like(x)
        for head in range(config.heads):
            own = slice(head * size, (head + 1) * size)
            for i in range(len(x)):
                weights = np.exp([queries[i, own] @ keys[j, own] / np.sqrt(size) for j in range(i + 1)])
                attended[i, own] = weights / weights.sum() @ values[: i + 1, own]
        x = x + attended @ numbers(block.output.kernel)
        x = x + affine(block.down, np.maximum(affine(block.up, norm(block.norm_mlp, x)), 0))
    x = x + latent[-1]
    return affine(model.head, norm(model.norm, x))[config.prompt_length - 1 :]


@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("name", NAMES)
def test_agrees_with_plain_numpy(name, layers, small, lively):
    task = small(name)
    model, (soft, answer, latent) = lively(task, layers=layers), random_input(task, layers)
    for push in (latent, 0 * latent):
        expected = by_hand(model, soft, answer, push)
        assert expected.shape == (task.answer_length, task.answer_vocab)
        np.testing.assert_allclose(jax.jit(model.__call__)(soft, answer, push), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_read_before_its_turn(name, small, lively):
    """d logits[t] / d latent[layer, position] vanishes exactly where the position comes after T - 1 + t."""
    task, layers = small(name), 2
    model, (soft, answer, latent) = lively(task, layers=layers), random_input(task, layers)
    by_prompt, by_latent = jax.jit(jax.jacrev(model.__call__, argnums=(0, 2)))(soft, answer, latent)
    reached = np.abs(by_latent).max(axis=(1, 4)) > 0
    positions = np.arange(task.prompt_length + task.answer_length - 1)
    now = task.prompt_length - 1 + np.arange(task.answer_length)[:, None]
    for layer in range(layers):
        np.testing.assert_array_equal(reached[:, layer], positions <= now)
    np.testing.assert_array_equal(reached[:, layers], positions == now)
    assert (np.abs(by_prompt) > 0).any(axis=(1, 3)).all(), "every prompt position reaches every answer step"


def test_answer_tokens_change_only_what_follows(small, lively):
    task = small("cipher_vault")
    model, (soft, answer, _) = lively(task, layers=2), random_input(task, 2)
    forward = jax.jit(lambda answer: model(soft, answer))
    before = np.asarray(forward(answer))
    for step in range(task.answer_length):
        other = answer.copy()
        other[step] = (answer[step] + 1) % task.answer_vocab
        same = (np.asarray(forward(other)) == before).all(axis=1)
        np.testing.assert_array_equal(same, np.arange(task.answer_length) <= step)


def test_no_latent_is_a_latent_of_zeros(small, lively):
    task = small("cipher_vault")
    model, (soft, answer, latent) = lively(task, layers=2), random_input(task, 2)
    forward = jax.jit(model.__call__)
    np.testing.assert_array_equal(forward(soft, answer), forward(soft, answer, 0 * latent))


def test_is_a_plain_pytree(small, lively):
    """Models stack into an axis for `vmap`, and every parameter has a gradient."""
    task = small("cipher_vault")
    soft, answer, _ = random_input(task, 2)
    models = [lively(task, seed) for seed in range(2)]
    assert {leaf.dtype for leaf in jax.tree.leaves(models)} == {np.dtype("float32")}

    @jax.jit
    @jax.vmap
    def both(model):
        return jax.value_and_grad(lambda model: (model(soft, answer) ** 2).sum())(model)

    values, gradients = both(jax.tree.map(lambda *leaves: jnp.stack(leaves), *models))
    for model, value in zip(models, values, strict=True):
        expected = (by_hand(model, soft, answer, np.zeros((3, 1, 1))) ** 2).sum()
        np.testing.assert_allclose(value, expected, rtol=1e-5)
    assert jax.tree.structure(gradients) == jax.tree.structure(models[0])
    assert all((np.abs(leaf).max(axis=tuple(range(1, leaf.ndim))) > 0).all() for leaf in jax.tree.leaves(gradients))


def test_fresh_models_depend_on_the_key_alone(small):
    config = model_config(small("injury"), width=4, heads=2, layers=1)
    make = jax.jit(lambda key: Transformer(config, key))
    first, again, other = (jax.tree.leaves(make(jax.random.key(seed))) for seed in (0, 0, 1))
    assert all((a == b).all() for a, b in zip(first, again, strict=True))
    assert any((a != b).any() for a, b in zip(first, other, strict=True))


@pytest.mark.parametrize(
    ("field", "value"), [("width", 0), ("layers", -1), ("heads", 2.0), ("vocab", "8"), ("answer_length", None)]
)
def test_bad_sizes_are_refused(field, value):
    with pytest.raises(ValueError, match=f"model {field} must be a whole number of at least 1, not {value!r}"):
        dataclasses.replace(ModelConfig(4, 8, 1, 2), **{field: value})


def test_heads_must_share_the_width():
    with pytest.raises(ValueError, match="width 30 must be a multiple of its 4 heads"):
        ModelConfig(4, 8, 1, 2, width=30)
