"""Calls to the first failure: closed forms, a hand-counted example, and what censoring must not hide."""

import numpy as np
import pytest

from testbed.attacks.search import NEVER
from testbed.evaluation.survival import kaplan_meier, log_rank, median_calls, median_of


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
    ("first", "median"),
    [
        ([4, 1, 9], 4),
        ([4, 1, 9, 20], 4),
        ([1, NEVER], 1),
        ([1, NEVER, NEVER], np.inf),
        ([*range(1, 13), *[NEVER] * 12], 12),
    ],
)
def test_the_median_is_reached_by_half_of_all_attackers(first, median):
    assert median_calls(np.array(first)) == median == median_of(kaplan_meier(np.array(first), 50))


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


def test_the_curve_is_the_table_worked_by_hand():
    """Eight attackers, budget 20: found after 3, 3, 5, 5, 9 and 12 calls, two never.

    call   at risk   found   surviving          Greenwood's sum of d / (n (n - d))
      3       8        2     6/8 = 0.75         2/48                     = 0.041667
      5       6        2     0.75 x 4/6 = 0.5   0.041667 + 2/24          = 0.125
      9       4        1     0.5 x 3/4 = 0.375  0.125 + 1/12             = 0.208333
     12       3        1     0.375 x 2/3 = 0.25 0.208333 + 1/6           = 0.375
    """
    curve = kaplan_meier(np.array([3, 3, 5, 9, NEVER, 12, NEVER, 5]), 20)
    assert curve.calls[:4].tolist() == [3, 5, 9, 12]
    np.testing.assert_allclose(curve.surviving[:4], [0.75, 0.5, 0.375, 0.25])
    # Log-log band: S ** exp(+- 1.96 sqrt(sum) / |ln S|); at 12 calls, 1.959964 x 0.612372 / 1.386294 = 0.865781.
    np.testing.assert_allclose(curve.low[3], 0.25 ** np.exp(0.865781), rtol=1e-5)
    np.testing.assert_allclose(curve.high[3], 0.25 ** np.exp(-0.865781), rtol=1e-5)


def test_the_log_rank_test_is_the_table_worked_by_hand():
    """Group one finds after 2 and 4 calls, group two after 6, and one of each never (budget 10).

    call   at risk 1, 2   expected in 1   variance
      2        3, 2         3/5            (3/5)(2/5)         = 0.24
      4        2, 2         2/4            (2/4)(2/4)         = 0.25
      6        1, 2         1/3            (1/3)(2/3)         = 0.222222
    Observed 2, expected 1.433333, variance 0.712222: z = 0.671460, two-sided p = 0.501928.
    """
    p = log_rank(np.array([2, 4, NEVER]), np.array([6, NEVER]), 10)
    assert p == pytest.approx(0.501928, abs=1e-5)
