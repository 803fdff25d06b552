"""Calls to the first failure: closed forms, a hand-counted example, and what censoring must not hide."""

import numpy as np
import pytest

from testbed.attacks.search import NEVER
from testbed.evaluation.survival import kaplan_meier, log_rank, median_calls


def by_hand(first, budget):
    """Kaplan and Meier's product, from the definition."""
    calls = sorted({int(c) for c in first if c < NEVER})
    surviving, product = [], 1.0
    for call in calls:
        at_risk = sum(c >= call for c in first)
        product *= 1 - sum(c == call for c in first) / at_risk
        surviving.append(product)
    return calls, surviving


def test_the_curve_is_kaplan_and_meiers_product():
    first = np.array([3, 3, 5, 9, NEVER, 12, NEVER, 5])
    curve = kaplan_meier(first, 20)
    calls, surviving = by_hand(first, 20)
    assert curve.calls.tolist() == [*calls, 20]
    np.testing.assert_allclose(curve.surviving, [*surviving, surviving[-1]])
    assert (curve.low <= curve.surviving).all() and (curve.surviving <= curve.high).all()


def test_the_band_covers_a_geometric_law():
    """Attackers that guess find their first failure at a geometric number of calls: P(none in c) = (1 - p)^c."""
    rng, p, budget, covered = np.random.default_rng(0), 0.02, 100, 0
    for _ in range(200):
        first = rng.geometric(p, 64)
        curve = kaplan_meier(np.where(first <= budget, first, NEVER), budget)
        at = np.searchsorted(curve.calls, 40, side="right") - 1
        covered += curve.low[at] <= (1 - p) ** curve.calls[at] <= curve.high[at]
    assert covered / 200 > 0.9


def test_who_finds_nothing_is_censored_and_not_left_out():
    half = np.array([10] * 5 + [NEVER] * 5)
    assert kaplan_meier(half, 50).surviving[-1] == 0.5
    assert kaplan_meier(np.array([NEVER] * 4), 50).surviving.tolist() == [1.0]
    assert kaplan_meier(np.array([7, 7]), 50).surviving.tolist() == [0.0]


@pytest.mark.parametrize(
    ("first", "median"), [([4, 1, 9], 4), ([4, 1, 9, 20], 4), ([1, NEVER], 1), ([1, NEVER, NEVER], np.inf)]
)
def test_the_median_is_reached_by_half_of_all_attackers(first, median):
    assert median_calls(np.array(first)) == median


def test_the_log_rank_test_tells_quick_from_slow_and_alike_from_neither():
    rng = np.random.default_rng(1)
    quick, slow = rng.geometric(0.1, 100), rng.geometric(0.02, 100)
    assert log_rank(quick, slow, 1000) < 1e-6
    assert log_rank(quick, rng.geometric(0.1, 100), 1000) > 0.01
    nobody = np.array([NEVER] * 10)
    assert log_rank(nobody, nobody, 1000) == 1.0
    assert log_rank(nobody, quick, 1000) < 1e-3


def test_no_attackers_are_refused():
    with pytest.raises(ValueError, match="at least one attacker"):
        kaplan_meier(np.array([]), 10)
