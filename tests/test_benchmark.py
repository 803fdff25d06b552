"""The benchmark's arithmetic, on a clock that is made up, and what it measures."""

import dataclasses
import math
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl import flags

from experiments import benchmark, pytorch
from tasks import TASKS
from testbed.attacks import ATTACKS
from testbed.model import Transformer, model_config
from testbed.training.schedule import Schedule


@pytest.fixture(autouse=True)
def parsed():
    """Flags at their defaults."""
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()
        yield
        flags.FLAGS.unparse_flags()
    else:
        yield


def test_neighbours_are_compared_so_that_a_drifting_machine_changes_nothing(monkeypatch):
    clock, slow = [0.0], iter([9, 9, 1, 1, 1, 1, 5, 1, 5, 5, 5, 5])  # how slow the machine is at each call

    def work(seconds):
        clock[0] += seconds * next(slow)

    monkeypatch.setattr(benchmark.time, "perf_counter", lambda: clock[0])
    row = benchmark.paired("it", "steps/s", (lambda: work(1.0), 30), ("bare", lambda: work(0.5), 20), target=0.8)
    assert row.ratio == pytest.approx(30 / 40) and row.target == 0.8
    assert row.value == pytest.approx(30 / 5) and row.baseline == "bare (40)"


def test_every_attack_is_measured_against_its_target(monkeypatch):
    monkeypatch.setattr(benchmark, "paired", lambda name, unit, ours, bare, target: (name, ours[1], bare[2], target))
    for (name, spent, passes, target), attack in zip(benchmark.attacks(TASKS["injury"]()), ATTACKS, strict=True):
        assert name.split()[1] == f"{attack},"
        assert target == (0.6 if ATTACKS[attack]().gradients else 0.8)
        assert passes <= spent <= 128 * 400


def products_in(function, *arguments):
    """FLOPs of all products of matrices in a function's program, counted by JAX's own text of it."""
    total = 0
    for equation in jax.make_jaxpr(function)(*arguments).jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            shape = equation.invars[0].aval.shape
            total += 2 * math.prod(equation.outvars[0].aval.shape) * math.prod(shape[i] for i in contracted)
    return total


@pytest.mark.parametrize("name", ["injury", "pointer_vault"])
def test_flops_are_those_of_the_products_of_a_forward_pass(name):
    """But for attention, which computes all pairs and masks those that it must not see."""
    task = TASKS[name]()
    config = model_config(task)
    prompt = jnp.zeros((config.prompt_length, config.vocab))
    answer = jnp.zeros(config.answer_length, jnp.int32)
    model = jax.eval_shape(lambda: Transformer(config, jax.random.key(0)))
    said = products_in(lambda model, *inputs: model(*inputs), model, prompt, answer)
    reads = [config.positions] * (config.layers - 1) + [config.answer_length]
    masked = sum(read * (read - 1) // 2 for read in reads) * 4 * config.width
    assert said - masked == benchmark.flops(config)


def test_a_walk_over_one_prompt_is_a_forward_pass_but_for_what_all_nodes_share():
    task = TASKS["injury"](length=3)
    single = dataclasses.replace(task, allowed=task.allowed & (np.arange(task.vocab) == 0))
    config = model_config(single)
    embedding = 2 * config.prompt_length * config.vocab * config.width
    projections = 2 * 3 * config.prompt_length * config.width**2
    assert benchmark.walk_flops(single, config) == benchmark.flops(config) - embedding - projections


def test_without_pytorch_it_says_how_to_install_it_and_measures_the_rest(monkeypatch, capsys):
    def absent():
        raise ValueError("torch is not installed; python -m pip install -e '.[torch]' brings it")

    monkeypatch.setattr(pytorch, "pytorch", absent)
    monkeypatch.setattr(benchmark, "together", lambda task: iter(["a row"]))
    monkeypatch.setattr(benchmark, "ONLY", SimpleNamespace(value=["population", "torch"]))
    assert list(benchmark.measure()) == ["a row"]
    assert capsys.readouterr().err == "torch is not installed; python -m pip install -e '.[torch]' brings it\n"


@pytest.mark.slow
def test_the_transformer_of_pytorch_is_ours(lively):
    """Logits, and the losses of steps of AdamW."""
    pytest.importorskip("torch", reason="needs the extra `torch`")
    task = TASKS["injury"](length=5)
    model = lively(task, width=8, heads=2, layers=2)
    prompts = np.asarray(jax.vmap(task.sample)(jax.random.split(jax.random.key(0), 32)))
    expected = jax.vmap(lambda p: model(jax.nn.one_hot(p, task.vocab), jnp.zeros(1, jnp.int32))[0])(prompts)
    weights = pytorch.weights_of(model)
    tokens = pytorch.pytorch().tensor(prompts).long()
    np.testing.assert_allclose(pytorch.logits_of(weights, tokens, model.config).detach(), expected, atol=1e-4)
    assert pytorch.forward(model, prompts, 10)() == pytest.approx(float(expected.sum()), abs=1e-2)
    schedule = Schedule(steps=5, units=5, batch=32)
    losses = benchmark.descended(model, task, jnp.asarray(prompts), schedule)
    labels = np.asarray(jax.vmap(task.label)(prompts))[:, 0]
    assert pytorch.trainer(model, prompts, labels, schedule)() == pytest.approx(float(losses[-1]), rel=1e-3)
