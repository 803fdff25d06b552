"""Calls to the first failure as survival: attackers that found nothing within the budget are censored, not left out."""

import warnings
from typing import NamedTuple

import numpy as np
from scipy import stats

from testbed.attacks.search import NEVER


class Curve(NamedTuple):
    """Kaplan-Meier estimate: after `calls` `[n]`, the share of attackers without a failure, and its 95 % band."""

    calls: np.ndarray
    surviving: np.ndarray
    low: np.ndarray
    high: np.ndarray


def censored(first: np.ndarray, budget: int | np.ndarray) -> stats.CensoredData:
    """Calls to the first failure `[P]` (`NEVER` where there was none) as right-censored at the budget.

    `budget` is one for all, or each one's own `[P]`: people stop when they like.
    """
    first = np.asarray(first, float)
    found = first < NEVER
    return stats.CensoredData(uncensored=first[found], right=np.broadcast_to(budget, first.shape)[~found].astype(float))


def kaplan_meier(first: np.ndarray, budget: int | np.ndarray) -> Curve:
    """The survival curve of calls to the first failure `[P]`, with the log-log Greenwood band; `budget` as above.

    The band is NaN where nobody has, or everybody has, found a failure: there the formula is undefined.

    Raises:
      ValueError: no attackers.
    """
    if not len(first):
        raise ValueError("a survival curve needs at least one attacker")
    survival = stats.ecdf(censored(first, budget)).sf
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        band = survival.confidence_interval(0.95, method="log-log")
    return Curve(survival.quantiles, survival.probabilities, band.low.probabilities, band.high.probabilities)


def median_calls(first: np.ndarray) -> float:
    """Calls after which half of the attackers `[P]` have found a failure; infinite if fewer than half ever do."""
    first = np.sort(np.asarray(first, float))
    at = first[(len(first) + 1) // 2 - 1]
    return float(at) if at < NEVER else np.inf


def median_of(curve: Curve) -> float:
    """Calls after which half have found a failure, if all had gone on as those who did; infinite if that is never."""
    halved = curve.calls[curve.surviving <= 0.5 + 1e-9]  # a product of shares may end beside a half
    return float(halved[0]) if len(halved) else np.inf


def median_within(first: list[int | None], budget: int) -> float:
    """The same for a recorded list, None being never; the budget, a lower bound, where fewer than half ever do."""
    return min(median_calls(np.array([NEVER if calls is None else calls for calls in first])), budget)


def log_rank(first: np.ndarray, other: np.ndarray, budget: int) -> float:
    """Two-sided p-value of the log-rank test that two groups of attackers need equally many calls (Mantel 1966).

    One where nobody in either group found anything.
    """
    if (np.asarray(first) == NEVER).all() and (np.asarray(other) == NEVER).all():
        return 1.0
    return float(stats.logrank(censored(first, budget), censored(other, budget)).pvalue)
