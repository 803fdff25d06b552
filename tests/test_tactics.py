"""Tactics: a greedy cover by balls, against sets whose covers are known."""

import itertools

import numpy as np
import pytest

from tasks import TASKS
from testbed.evaluation import tactics
from testbed.task import prompt_ids


def test_every_prompt_lies_within_the_radius_of_a_centre_that_is_one_of_them():
    prompts = np.random.default_rng(0).integers(0, 4, (300, 6))
    centres = tactics.cover(prompts)
    near = [min(sum(a != b for a, b in zip(p, c, strict=True)) for c in centres) for p in prompts]
    assert max(near) == 2
    assert {tuple(c) for c in centres} <= {tuple(p) for p in prompts}
    assert len({tuple(c) for c in centres}) == len(centres) < 100


def test_balls_far_apart_are_one_tactic_each_the_largest_first():
    ball = lambda token, changes: [
        np.array([token] * 8) + np.eye(8, dtype=int)[k] * 10 for k in range(changes)
    ]  # fmt: skip
    prompts = np.array([np.full(8, 1), *ball(1, 2), np.full(8, 2), *ball(2, 5), np.full(8, 3)])
    centres = tactics.cover(prompts)
    assert len(centres) == 3
    assert [int(np.median(centre)) for centre in centres] == [2, 1, 3]
    assert tactics.tactic(prompts[0], centres) == 1 and tactics.tactic(np.full(8, 9), centres) is None


def test_a_chain_is_one_component_but_several_tactics():
    chain = np.array([[1] * k + [0] * (10 - k) for k in range(11)])
    assert len(tactics.cover(chain)) == 3  # of radius two: five at most in each


def test_no_prompts_have_no_tactic():
    assert len(tactics.cover(np.zeros((0, 5), int))) == 0


def test_many_failures_are_told_to_be_a_sample():
    task = TASKS["injury"](length=5)
    whole = prompt_ids(task, np.array(list(itertools.product(range(8), repeat=4)))[:, [0, 0, 1, 2, 3]])
    centres, all_of_them = tactics.of_failures(task, np.arange(len(whole)))
    assert all_of_them and len(centres)
    centres, all_of_them = tactics.of_failures(task, np.arange(2 * tactics.MOST))
    assert not all_of_them
    with pytest.raises(ValueError, match="give a sample"):
        tactics.cover(np.zeros((tactics.MOST + 1, 3), int))
