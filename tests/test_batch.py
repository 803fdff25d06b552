"""The layout for training: the same model, up to rounding, with the same gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import lively_of, slow

from testbed import batch
from testbed.batch import MOST_POSITIONS, batch_logits, features_first
from testbed.model import ModelConfig


def lively_transformer(**sizes):
    return lively_of(
        ModelConfig(**dict(prompt_length=5, vocab=3, answer_length=1, answer_vocab=4, width=8, heads=2) | sizes)
    )


def inputs(config, number=6):
    rng = np.random.default_rng(1)
    return (
        rng.dirichlet(np.ones(config.vocab), (number, config.prompt_length)).astype(np.float32),
        rng.integers(0, config.answer_vocab, (number, config.answer_length), np.int32),
        rng.standard_normal((number, config.layers + 1, config.positions, config.width), np.float32),
    )


def slopes(forward, model, soft, said, latents):
    """The gradients of a loss that reads every logit, by model, prompts and latents."""
    weights = jnp.arange(1.0, model.config.answer_vocab + 1)
    loss = lambda model, soft, latents: (weights * forward(model, soft, said, latents) ** 2).mean()
    return jax.jit(jax.grad(loss, (0, 1, 2)))(model, soft, latents)


by_prompt = lambda model, *inputs: jax.vmap(model)(*inputs)


@pytest.mark.parametrize(
    "sizes", [slow(dict()), dict(layers=1), slow(dict(answer_length=4)), dict(prompt_length=1, layers=1)]
)
def test_both_layouts_say_the_same_and_slope_the_same(sizes):
    model = lively_transformer(**sizes)
    soft, said, latents = inputs(model.config)
    assert features_first(model)
    for given in (None, latents):
        ours, plain = (jax.jit(forward)(model, soft, said, given) for forward in (batch_logits, by_prompt))
        np.testing.assert_allclose(ours, plain, rtol=1e-4, atol=1e-5)
    ours, plain = (slopes(forward, model, soft, said, latents) for forward in (batch_logits, by_prompt))
    for one, other in zip(jax.tree.leaves(ours), jax.tree.leaves(plain), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-5 * float(jnp.abs(other).max()))


def test_what_is_long_or_no_transformer_keeps_the_usual_layout(monkeypatch):
    long = lively_transformer(prompt_length=MOST_POSITIONS + 1, layers=1)
    assert not features_first(long)
    soft, said, _ = inputs(long.config)
    assert (jax.jit(batch_logits)(long, soft, said) == jax.jit(by_prompt)(long, soft, said)).all()
    callable_only = lambda soft_prompt, answer, latent=None: soft_prompt.sum() + answer
    assert batch_logits(callable_only, soft, said).shape == said.shape
    monkeypatch.setattr(batch.jax, "default_backend", lambda: "gpu")
    assert not features_first(lively_transformer())
