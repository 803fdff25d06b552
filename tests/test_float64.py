"""The exact count against a second one: a forward pass in float64 numpy, the rules in plain Python, no code shared."""

import functools
import itertools

import numpy as np
import pytest
from reference import REFERENCE

from tasks import TASKS, TEST_SIZES
from testbed.evaluation import exact
from testbed.policy import conservative, greedy

QUICK = ("injury", "cipher_vault")  # a classifier and a generator
TIED = 1e-3  # where two logits are as near, float32 may turn them


def numbers(parameter):
    return np.asarray(parameter[...], np.float64)


def normed(layer, x):
    centred = x - x.mean(axis=-1, keepdims=True)
    deviation = np.sqrt((centred**2).mean(axis=-1, keepdims=True) + 1e-6)
    return centred / deviation * numbers(layer.scale) + numbers(layer.bias)


def attended(block, x):
    """Causal attention over `[prompts, positions, width]`, a head and a position at a time."""
    size, out = x.shape[-1] // block.heads, np.zeros_like(x)
    query, key, value = (x @ numbers(getattr(block, name).kernel) for name in ("query", "key", "value"))
    for head in range(block.heads):
        part = slice(head * size, (head + 1) * size)
        for at in range(x.shape[1]):
            scores = (key[:, : at + 1, part] * query[:, at, None, part]).sum(axis=-1) / np.sqrt(size)
            weights = np.exp(scores - scores.max(axis=1, keepdims=True))
            weights /= weights.sum(axis=1, keepdims=True)
            out[:, at, part] = (weights[..., None] * value[:, : at + 1, part]).sum(axis=1)
    return out @ numbers(block.output.kernel)


def next_logits(model, prompts, said):
    """Logits `[prompts, A]` of the answer token that follows the prompts `[n, T]` and what was said `[n, t]`."""
    x = numbers(model.prompt_embedding.kernel)[prompts]
    if said.shape[1]:
        x = np.concatenate([x, numbers(model.answer_embedding.embedding)[said]], axis=1)
    x = x + numbers(model.position)[: x.shape[1]]
    for block in model.blocks:
        x = x + attended(block, normed(block.norm_attention, x))
        hidden = normed(block.norm_mlp, x) @ numbers(block.up.kernel) + numbers(block.up.bias)
        x = x + np.maximum(hidden, 0) @ numbers(block.down.kernel) + numbers(block.down.bias)
    return normed(model.norm, x[:, -1]) @ numbers(model.head.kernel) + numbers(model.head.bias)


def answers_of(model, task, prompts, tau):
    """The answers `[n, N]`, and whether some two logits were so near that float32 may tell them otherwise `[n]`."""
    said, near = np.zeros((len(prompts), 0), int), np.zeros(len(prompts), bool)
    for _ in range(task.answer_length):
        logits = next_logits(model, prompts, said)
        logits[:, task.refusal] -= tau
        best = np.sort(logits, axis=1)
        near |= best[:, -1] - best[:, -2] < TIED
        said = np.concatenate([said, logits.argmax(axis=1)[:, None]], axis=1)
    return said, near


@functools.cache
def ruled(name):
    """A task of a small size, its prompts, and what the rule forbids on each."""
    task = TASKS[name](**TEST_SIZES[name])
    prompts = np.array(list(itertools.product(*(np.flatnonzero(row).tolist() for row in task.allowed))))
    verdict = functools.partial(REFERENCE[name], vocab=task.vocab)
    return task, prompts, [verdict(tuple(prompt)) for prompt in prompts.tolist()]


def compared(name, model):
    """How many verdicts were compared, how many were near a tie, and the prompts on which the two counts differ."""
    task, prompts, verdicts = ruled(name)
    taus = {"greedy": 0.0, "careful": -0.5}
    counted = exact.count(model, task, {"greedy": greedy(task), "careful": conservative(task, -0.5)})
    tried, tied, wrong = 0, 0, []
    for policy, tau in taus.items():
        answers, near = answers_of(model, task, prompts, tau)
        fails = np.array([tuple(a) in v.forbidden for a, v in zip(answers.tolist(), verdicts, strict=True)])
        said = np.zeros(len(prompts), bool)
        said[counted[policy].ids] = True
        wrong += prompts[(said != fails) & ~near].tolist()
        tried, tied = tried + len(prompts), tied + int(near.sum())
        alarms = [task.refusal in a and not v.forbidden for a, v in zip(answers.tolist(), verdicts, strict=True)]
        safe = [task.refusal not in v.label for v in verdicts]
        assert abs(counted[policy].false_alarms - np.logical_and(alarms, safe).sum()) <= near.sum()
    return tried, tied, wrong


@pytest.mark.parametrize("name", QUICK)
def test_no_verdict_differs_from_a_forward_pass_in_float64(name, lively):
    found = [compared(name, lively(ruled(name)[0], seed, layers=2)) for seed in range(3)]
    tried, tied = (sum(column) for column in list(zip(*found, strict=True))[:2])
    assert tried >= 3 * 2 * 900 and tied < tried / 50, "it compares nearly all"
    assert [wrong for *_, wrong in found] == [[]] * 3


@pytest.mark.slow
@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("name", TASKS)
def test_no_verdict_of_fifty_models_of_each_kind_differs(name, layers, lively):
    """A thousand models over all tasks."""
    for seed in range(50):
        assert compared(name, lively(ruled(name)[0], 1000 + seed, width=16, heads=4, layers=layers))[2] == [], seed
