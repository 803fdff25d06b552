"""`--check` of a task: what it says of one that keeps the contract, and of probabilities that are wrong."""

import dataclasses
import io

import jax
import jax.numpy as jnp
import pytest
from rich.console import Console

from experiments.task_check import check_named, refuse_wrong_log_prob
from tasks import TASKS, task_named
from tasks.injury import injury

TASK, KEY = injury(length=4), jax.random.key(0)


@pytest.mark.parametrize("name", [name for name, make in TASKS.items() if make().clean_log_prob is not None])
def test_the_shipped_probabilities_are_right(name, small):
    refuse_wrong_log_prob(KEY, small(name))


@pytest.mark.parametrize(
    ("log_prob", "complaint"),
    [
        (
            lambda prompt: TASK.clean_log_prob(prompt) - 0.1,
            "clean_log_prob adds up to 0.9048 over all",
        ),
        (lambda prompt: -4 * jnp.log(8.0), "sample does not draw by clean_log_prob: of 4,096"),
        (lambda prompt: TASK.clean_log_prob(prompt[::-1]), "sample does not draw by clean_log_prob: of 4,096"),
    ],
)
def test_wrong_probabilities_are_refused(log_prob, complaint):
    with pytest.raises(ValueError, match=complaint):
        refuse_wrong_log_prob(KEY, dataclasses.replace(TASK, clean_log_prob=log_prob))


def test_what_it_says_of_a_task(monkeypatch):
    console = Console(file=io.StringIO(), width=120)
    assert check_named("injury:length=4", console) == 0
    said = console.file.getvalue()
    assert "exact clean failure rate: yes\n" in said and "4,096 of 4 tokens, vocabulary 8" in said
    large = task_named("injury:length=16:vocab=16")
    refuse_wrong_log_prob(KEY, dataclasses.replace(large, clean_log_prob=lambda prompt: jnp.zeros(())))  # not added up
