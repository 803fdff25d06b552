"""Statistics: exact binomial intervals, and paired effects over training seeds."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

MOST_FLIPS = 2**14


class Interval(NamedTuple):
    """A point estimate and the two ends of its confidence interval."""

    value: float
    low: float
    high: float


def clopper_pearson(successes: int, trials: int, confidence: float = 0.95) -> Interval:
    """A rate with its exact binomial interval (Clopper and Pearson 1934).

    Raises:
      ValueError: there are no trials, or more successes than trials.
    """
    if trials < 1:
        raise ValueError(f"a rate needs at least one trial, not {trials}")
    if not 0 <= successes <= trials:
        raise ValueError(f"{successes} successes do not fit into {trials} trials")
    tail, failures = (1 - confidence) / 2, trials - successes
    low = stats.beta.ppf(tail, successes, failures + 1) if successes else 0.0
    high = stats.beta.isf(tail, successes + 1, failures) if failures else 1.0
    return Interval(successes / trials, float(low), float(high))


def student(values: np.ndarray, confidence: float = 0.95) -> Interval:
    """The mean of independent values `[n]` with its interval from Student's t distribution.

    It is exact for normal values. A BCa bootstrap covers 65 to 70 % at three values and 79 to 84 %
    at five where it says 95. What t covers instead, in per cent of simulated samples:

    | n  | normal | skewed | heavy tails | half at zero |
    | -- | ------ | ------ | ----------- | ------------ |
    | 5  | 95.0   | 88.2   | 96.3        | 86.3         |
    | 10 | 95.0   | 90.0   | 96.0        | 91.5         |

    Skewed values are exponential, and heavy tails those of t with 3 degrees of freedom. Half at
    zero means: each value is zero or, as often, normal with mean and deviation 1. So where a
    floor is reached in some seeds, intervals are too narrow, less so with more seeds.
    """
    mean, error = float(np.mean(values)), float(stats.sem(values))
    spread = stats.t.ppf((1 + confidence) / 2, len(values) - 1) * error
    return Interval(mean, mean - spread, mean + spread)


def seeds_for(width: float, spread: float, pairs: int, confidence: float = 0.95) -> int:
    """How many paired seeds bring an interval of `student` down to `width` either way, at least 2.

    The interval of `pairs` seeds is `spread` wide either way. If their deviation s stays, it is the least
    n with t(n - 1) s / sqrt(n) <= width, where s = spread sqrt(pairs) / t(pairs - 1).

    Raises:
      ValueError: the width is not positive, the spread not finite, or there are no two pairs.
    """
    if not (width > 0 and np.isfinite(spread) and pairs > 1):
        raise ValueError(f"{pairs} pairs with an interval of {spread} either way don't say how many make it {width}")
    times = lambda n: float(stats.t.ppf((1 + confidence) / 2, n - 1)) / np.sqrt(n)
    deviation = spread / times(pairs)
    # With a normal interval for t's it would be so many: t's asks for a few more.
    seeds = max(2, int((stats.norm.ppf((1 + confidence) / 2) * deviation / width) ** 2))
    while times(seeds) * deviation > width * (1 + 1e-9):
        seeds += 1
    return seeds


class Effect(NamedTuple):
    """A mean paired difference with its interval, and the p-value of the two-sided sign-flip test."""

    mean: float
    low: float
    high: float
    p_value: float
    pairs: int


def paired_effect(differences: np.ndarray, confidence: float = 0.95, seed: int = 0) -> Effect:
    """The effect of paired differences `[S]`, one a training seed.

    The interval is Student's t over seeds; `student` says what that covers. The p-value is that of
    all 2^S sign flips, so at least 2^(1-S). Where these are more than `MOST_FLIPS`, it is estimated from so many.

    Raises:
      ValueError: there are no pairs.
    """
    # Sums of multiples of 2^-40 are exact: flips of the same values in another order have one mean.
    differences = np.round(np.asarray(differences, float) * 2**40) / 2**40
    if not len(differences):
        raise ValueError("an effect needs at least one pair of runs; none is complete")
    mean, pairs = float(differences.mean()), len(differences)
    if pairs == 1:
        return Effect(mean, -np.inf, np.inf, 1.0, pairs)
    interval = student(differences, confidence)
    flips = stats.permutation_test(
        (differences,), np.mean, permutation_type="samples", n_resamples=MOST_FLIPS, rng=np.random.default_rng(seed)
    )
    return Effect(mean, interval.low, interval.high, float(flips.pvalue), pairs)


def holm(p_values: Sequence[float]) -> np.ndarray:
    """p-values adjusted for how many there are, by Holm's step-down rule (Holm 1979)."""
    p = np.asarray(p_values, float)
    order = p.argsort()
    stepped = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    return np.minimum(stepped, 1)[order.argsort()]
