"""What an estimator of rare failure says, and how independent replicates become one interval."""

import dataclasses
import functools
import math
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from scipy import stats

from testbed.objective import Objective
from testbed.task import Task

REPLICATES = 8


class Estimate(NamedTuple):
    """A probability of failure with its 95 % interval, and what tells whether to believe it.

    Attributes:
      value, low, high: the estimate and its interval.
      effective: effective sample size (sum w)^2 / sum w^2 of the weights w that failures carry; for an extrapolation,
        of the points it was fitted to.
      largest: the largest of these weights as a share of them all: near 1, a single sample decides.
      calls: forward-pass equivalents spent.
    """

    value: float
    low: float
    high: float
    effective: float
    largest: float
    calls: int


def health(weights: np.ndarray) -> tuple[float, float]:
    """Effective sample size and largest share of weights; (0, 1) if all are zero."""
    weights = np.asarray(weights, np.float64).ravel()
    total = weights.sum()
    if not total > 0:
        return 0.0, 1.0
    shares = weights / total
    return float(1 / (shares**2).sum()), float(shares.max())


def pooled(replicates: np.ndarray, ceiling: float, weights: np.ndarray, calls: int) -> Estimate:
    """The mean of independent replicates, with Student's interval on its logarithm (delta method).

    Where no replicate saw a failure, nothing but `ceiling` is known: an upper bound from samples of the distribution
    itself. Zero observed is not zero.
    """
    replicates = np.asarray(replicates, np.float64)
    mean, n = float(replicates.mean()), len(replicates)
    if not mean > 0:
        return Estimate(0.0, 0.0, ceiling, *health(weights), calls)
    spread = stats.t.ppf(0.975, n - 1) * replicates.std(ddof=1) / (mean * math.sqrt(n))
    return Estimate(mean, mean * math.exp(-spread), min(1.0, mean * math.exp(spread)), *health(weights), calls)


def in_deployment(estimate: Estimate, prompts: int) -> Estimate:
    """The chance of at least one failure among `prompts` independent clean prompts: 1 - (1 - p)^n, ends alike."""
    ends = (-math.expm1(prompts * math.log1p(-min(p, 1 - 1e-16))) for p in estimate[:3])
    return Estimate(*ends, *estimate[3:])


def refuse_without_density(objective: Objective, estimator: str) -> None:
    """Say in one line that an estimator needs a density that the task does not give.

    Raises:
      ValueError: it does not.
    """
    if objective.task.clean_log_prob is None:
        raise ValueError(
            f"the estimator {estimator} needs task {objective.task.name}'s clean_log_prob, and it has none; use naive"
        )


def refuse_few(name: str, value: int, least: int) -> None:
    """Say in one line that a number of samples is too small.

    Raises:
      ValueError: it is.
    """
    if value < least:
        raise ValueError(f"{name} must be at least {least}, not {value}")


@functools.cache
def under_hazards(task: Task, hazards: int) -> Task:
    """The task with `sample_hazard` for its clean distribution, where that is uniform over its `hazards` prompts."""
    log_prob = -math.log(hazards)
    return dataclasses.replace(
        task,
        sample=task.sample_hazard,
        clean_log_prob=lambda prompt: jnp.where(task.hazardous(prompt), log_prob, -jnp.inf),
        clean_chains=(),  # which are of the distribution that was exchanged
    )
