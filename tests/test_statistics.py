"""What intervals over seeds cover, by simulation, and the verdict of a row."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from experiments.effects import outcome_of, row, table
from testbed.statistics import clopper_pearson, seeds_for, student

SAMPLES = 40_000  # of each size and shape: the share that is covered is known to a quarter of a per cent
SHAPES = {
    "normal": (lambda rng, size: rng.normal(size=size), 0.0),
    "skewed": (lambda rng, size: rng.exponential(size=size), 1.0),
    "heavy tails": (lambda rng, size: rng.standard_t(3, size=size), 0.0),
    "half at zero": (lambda rng, size: (rng.random(size) < 0.5) * rng.normal(1, 1, size=size), 0.5),
}


def told() -> dict[tuple[int, str], float]:
    """The table in the docstring of `student`: size and shape -> per cent covered."""
    lines = [line.strip().strip("|") for line in student.__doc__.splitlines() if line.strip().startswith("|")]
    head, _, *rows = lines
    names = [name.strip() for name in head.split("|")][1:]
    cells = [[cell.strip() for cell in one.split("|")] for one in rows]
    return {(int(n), name): float(c) for n, *covered in cells for name, c in zip(names, covered, strict=True)}


def t_interval(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The same interval as `student` has, of many samples `[samples, n]`, written down by itself."""
    n = values.shape[1]
    spread = stats.t.ppf(0.975, n - 1) * values.std(axis=1, ddof=1) / np.sqrt(n)
    return values.mean(axis=1) - spread, values.mean(axis=1) + spread


def test_the_table_has_every_size_and_shape():
    assert set(told()) == {(n, shape) for n in (5, 10) for shape in SHAPES}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("n", [5, 10])
def test_student_covers_what_its_docstring_says(n, shape):
    draw, mean = SHAPES[shape]
    values = draw(np.random.default_rng(n), (SAMPLES, n))
    low, high = t_interval(values)
    assert 100 * ((low <= mean) & (mean <= high)).mean() == pytest.approx(told()[n, shape], abs=1)
    for sample, *ends in zip(values[:20], low, high, strict=False):
        np.testing.assert_allclose(student(sample)[1:], ends, rtol=1e-9)


@pytest.mark.parametrize(("pairs", "spread"), [(3, 0.4), (5, 0.9), (10, 1.5), (10, 6.0), (20, 0.51), (2, 30.0)])
def test_so_many_seeds_and_no_fewer_narrow_an_interval(pairs, spread):
    """Held against the interval of as many values, half of them on either side of zero, of the same deviation."""
    deviation = spread * np.sqrt(pairs) / stats.t.ppf(0.975, pairs - 1)
    needed = seeds_for(0.5, spread, pairs)

    def either_way(n):
        signs = np.where(np.arange(n) % 2, 1.0, -1.0)
        low, high = t_interval(deviation * (signs / signs.std(ddof=1))[None])
        return (high - low)[0] / 2

    assert either_way(needed) <= 0.5 and (needed == 2 or either_way(needed - 1) > 0.5)
    assert seeds_for(spread, spread, pairs) == pairs, "what it has now is what that takes"


@pytest.mark.parametrize("asked", [(0.0, 1.0, 10), (0.5, np.inf, 10), (0.5, 1.0, 1), (np.nan, 1.0, 10)])
def test_an_interval_without_an_end_says_no_number_of_seeds(asked):
    with pytest.raises(ValueError, match="don't say how many"):
        seeds_for(*asked)


def test_no_failure_in_twenty_seeds_bounds_their_share():
    assert clopper_pearson(0, 20).high == pytest.approx(1 - 0.025 ** (1 / 20))
    assert 0.16 < clopper_pearson(0, 20).high < 0.17


@pytest.mark.parametrize(
    ("effect", "low", "high", "outcome"),
    [
        (1.2, 0.3, 2.1, "supported"), (1.0, 0.0, 2.0, "undecided"), (0.9, 0.6, 1.2, "undecided"),
        (0.1, -0.3, 0.4, "equivalent"), (0.2, 0.1, 0.3, "equivalent"), (-0.2, -0.3, -0.1, "equivalent"),
        (0.0, -0.5, 0.4, "undecided"), (-1.0, -1.5, -0.2, "refuted"), (-1.0, -2.0, 0.0, "undecided"),
        (9.0, -np.inf, np.inf, "undecided"),
    ],
)  # fmt: skip
def test_a_row_has_one_of_four_outcomes(effect, low, high, outcome):
    one = pd.Series({"effect": effect, "low": low, "high": high, "least": low, "most": high})
    assert outcome_of(one, least=1.0, band=0.5) == outcome


def test_without_a_band_nothing_is_equivalent_not_even_zeros():
    (same,) = table([row("t", "a", "b", "failing prompts", np.zeros(5))]).itertuples()
    assert (same.low, same.high) == (0, 0) and outcome_of(same) == "undecided"
    with pytest.raises(ValueError, match="must not reach beyond the least effect"):
        outcome_of(same, least=0.2, band=0.5)
