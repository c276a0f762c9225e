"""Fits and spreads against numpy's and plain formulas."""

import statistics

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_gpt.studies.report.fits import fit_line, fit_power, rank_correlation
from lightning_gpt.studies.report.groups import spread

NUMBERS = st.floats(-1e3, 1e3).map(lambda value: round(value, 3))


@given(st.lists(st.tuples(NUMBERS, NUMBERS), min_size=3, max_size=12, unique_by=lambda pair: pair[0]))
def test_line_is_that_of_least_squares(points: list[tuple[float, float]]) -> None:
    x, y = (np.array(side) for side in zip(*points, strict=True))
    if np.ptp(x) < 1:
        return
    line = fit_line(list(x), list(y))
    assert line is not None
    slope, intercept = np.polyfit(x, y, 1)
    assert (line.slope, line.intercept) == pytest.approx((slope, intercept), rel=1e-6, abs=1e-6)
    if np.ptp(y) > 1:
        assert line.r2 == pytest.approx(np.corrcoef(x, y)[0, 1] ** 2, abs=1e-9)


def test_exact_line_and_power_law() -> None:
    line = fit_line([2, 4, 8, 12], [0.5 + 0.25 * x for x in (2, 4, 8, 12)])
    assert line is not None
    assert (line.slope, line.intercept, line.r2, line.n) == pytest.approx((0.25, 0.5, 1.0, 4))
    power = fit_power([1, 10, 100], [3.0 * x**-0.5 for x in (1, 10, 100)])
    assert power is not None
    assert (power.exponent, power.factor, power.r2) == pytest.approx((-0.5, 3.0, 1.0))
    assert power.at(4) == pytest.approx(1.5)


def test_no_fit_where_it_would_say_nothing() -> None:
    assert fit_line([1, 1, 2], [1, 2, 3]) is None
    assert fit_power([1, 2, 3], [1, 0, 2]) is None
    assert fit_power([], []) is None


def test_rank_correlation() -> None:
    rising = rank_correlation(range(8), [x**3 for x in range(8)])
    falling = rank_correlation(range(8), [-x for x in range(8)])
    assert rising is not None
    assert falling is not None
    assert (rising.rho, falling.rho) == pytest.approx((1.0, -1.0))
    assert rising.p < 0.001
    tied = rank_correlation([1, 1, 2, 3], [5, 5, 1, 2])  # ranks 1.5 1.5 3 4 and 3.5 3.5 1 2
    assert tied is not None
    assert tied.rho == pytest.approx(np.corrcoef([1.5, 1.5, 3, 4], [3.5, 3.5, 1, 2])[0, 1])
    assert tied.p > 0.1
    assert rank_correlation([1, 1, 1, 1], [1, 2, 3, 4]) is None


@given(st.lists(NUMBERS, min_size=2, max_size=6))
def test_spread_is_mean_and_sample_deviation(values: list[float]) -> None:
    found = spread([None, *values])
    assert found is not None
    assert found.n == len(values)
    assert found.mean == pytest.approx(statistics.mean(values), abs=1e-9)
    assert found.deviation == pytest.approx(statistics.stdev(values), abs=1e-6)


def test_spread_of_one_has_no_deviation() -> None:
    found = spread([2.0])
    assert found is not None
    assert (found.mean, found.deviation, found.n) == (2.0, None, 1)
    assert spread([None]) is None
