"""Estimators of rare failure against exact truths among 2^64 prompts, down to 1e-12, where no sample reaches."""

import itertools

import jax
import numpy as np
import pytest
from machines import rarely_wrong
from reference import REFERENCE

from tasks import task_named
from testbed.evaluation import exact
from testbed.evaluation.rare import ESTIMATORS
from testbed.objective import Objective
from testbed.policy import greedy

LARGE = task_named("injury:length=16:vocab=16")
STORY = np.array([9, 0, 1, 0, 1, 9, 3, 0, 13, 4, 1, 4, 5, 9, 13, 6])  # a clean prompt in which somebody comes to harm


def counted(met):
    """A machine that is wrong after the first `met` tokens of the story, and its count."""
    machine = rarely_wrong(LARGE, STORY[:met])
    return machine, exact.count(machine, LARGE, {"it": greedy(LARGE)})["it"]


@pytest.mark.slow
def test_the_truth_is_the_sum_over_all_prompts_that_begin_so():
    ends = np.array(list(itertools.product(range(16), repeat=4)))
    prompts = np.concatenate([np.tile(STORY[:12], (len(ends), 1)), ends], axis=1)
    harm = np.array([bool(REFERENCE["injury"](prompt, 16).forbidden) for prompt in map(tuple, prompts.tolist())])
    logs = np.asarray(jax.vmap(LARGE.clean_log_prob)(prompts), np.float64)
    _, truth = counted(12)
    assert truth.failures == harm.sum() and truth.false_alarms == 0
    assert truth.clean_failure == pytest.approx(np.exp(logs[harm]).sum(), rel=1e-4)
    assert 1e-14 < truth.clean_failure < 1e-11


@pytest.mark.slow
@pytest.mark.parametrize("met", [5, 9, 12])
def test_splitting_climbs_to_the_truth_and_sampling_says_no_more_than_it_knows(met):
    machine, truth = counted(met)
    objective, said = Objective(LARGE, machine, greedy(LARGE)), {}
    for name, sizes in {"naive": dict(samples=2**13), "splitting": dict(particles=512)}.items():
        said[name] = ESTIMATORS[name](**sizes)(jax.random.key(1), objective)
    assert abs(np.log10(said["splitting"].value / truth.clean_failure)) < 0.3
    assert said["splitting"].low / 1.5 < truth.clean_failure < 1.5 * said["splitting"].high
    assert said["naive"].value == 0 and said["naive"].high > truth.clean_failure
