"""Fits and spreads against numpy's, scipy's and plain formulas."""

import statistics

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from lightning_gpt.studies.report.correlations import correlation_within
from lightning_gpt.studies.report.estimates import spread
from lightning_gpt.studies.report.fits import fit_forms, fit_power, ruled_out

NUMBERS = st.floats(-1e3, 1e3).map(lambda value: round(value, 3))
POSITIVE = st.floats(0.1, 1e3).map(lambda value: round(value, 3))


@given(st.lists(st.tuples(POSITIVE, POSITIVE), min_size=3, max_size=12, unique_by=lambda pair: pair[0]))
def test_power_law_is_the_line_of_the_logarithms(points: list[tuple[float, float]]) -> None:
    x, y = (np.log(side) for side in zip(*points, strict=True))
    if np.ptp(x) < 0.5:
        return
    law = fit_power(*zip(*points, strict=True))
    assert law is not None
    line = stats.linregress(x, y)
    assert (law.exponent, np.log(law.factor)) == pytest.approx((line.slope, line.intercept), rel=1e-6, abs=1e-6)
    assert law.half_width == pytest.approx(stats.t.ppf(0.975, len(x) - 2) * line.stderr, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize(
    ("kind", "law"),
    [
        ("linear", lambda x: 0.5 + 0.25 * x),
        ("power", lambda x: 3.0 * x**-0.5),
        ("saturating", lambda x: 2.0 + 5.0 * x**-0.7),
    ],
)
def test_exact_forms_are_found_and_the_others_ruled_out(kind, law) -> None:  # type: ignore[no-untyped-def]
    x = [2.0, 4.0, 8.0, 12.0] * 2
    forms = fit_forms(x, [law(each) for each in x])
    best = forms[0]
    assert (best.kind, len(forms)) == (kind, 3)
    assert best.error < 1e-7
    assert [best.at(each) for each in (3.0, 20.0)] == pytest.approx([law(3.0), law(20.0)], rel=1e-5)
    assert best.furthest < 1e-6
    assert not ruled_out(best, forms, len(x))
    simpler = [form for form in forms[1:] if form.kind != "saturating"]
    assert simpler
    assert all(ruled_out(form, forms, len(x)) for form in simpler)
    assert not any(ruled_out(form, forms, 5) for form in forms), "five points rule nothing out"


def test_no_fit_where_it_would_say_nothing() -> None:
    assert fit_forms([1, 1, 2], [1, 2, 3]) == []
    assert fit_forms([1, 2, 3], [1, 0, 2]) == []
    assert fit_power([1, 2, 3], [1, 0, 2]) is None
    assert fit_power([1, 1, 2], [1, 2, 3]) is None
    assert {form.kind for form in fit_forms([1, 2, 4], [1, 2, 3])} == {"linear", "power"}


def test_rank_correlation_within_runs() -> None:
    rising = correlation_within([(range(8), [x**3 for x in range(8)])])
    falling = correlation_within([(range(8), [-x for x in range(8)])])
    assert rising is not None
    assert falling is not None
    assert (rising.rho, falling.rho) == pytest.approx((1.0, -1.0))
    assert rising.p < 0.001
    tied = correlation_within([([1, 1, 2, 3], [5, 5, 1, 2])])  # ranks 1.5 1.5 3 4 and 3.5 3.5 1 2
    assert tied is not None
    assert tied.rho == pytest.approx(np.corrcoef([1.5, 1.5, 3, 4], [3.5, 3.5, 1, 2])[0, 1])
    assert tied.p > 0.1
    assert correlation_within([([1, 1, 1, 1], [1, 2, 3, 4]), ([1, 2], [1, 2])]) is None


def test_what_differs_between_runs_is_no_correlation() -> None:
    """All layers of one run are higher on both sides; inside each run there is no order in common."""
    runs = [([level + x for x in (0, 1, 2, 3)], [level + y for y in (1, 3, 0, 2)]) for level in (0.0, 10.0, 20.0)]
    pooled = stats.spearmanr([x for run in runs for x in run[0]], [y for run in runs for y in run[1]])
    assert pooled.pvalue < 0.001
    within = correlation_within(runs)
    assert within is not None
    assert (within.rho, within.runs, within.n) == (pytest.approx(0.0), 3, 12)
    assert within.p > 0.5


def test_a_profile_that_runs_share_is_no_proof_of_a_correlation() -> None:
    """Seeds repeat the profiles of x and y over the layers, which are drawn without regard to each other."""
    chance, found, studies = np.random.default_rng(3), 0, 200
    for _ in range(studies):
        x, y = chance.standard_normal((2, 6))
        runs = [(x + 0.3 * chance.standard_normal(6), y + 0.3 * chance.standard_normal(6)) for _ in range(12)]
        within = correlation_within(runs)
        assert within is not None
        found += within.p <= 0.05
    assert found / studies < 0.09  # 0.05 and three standard errors
    one = correlation_within([(x, x + 0.3 * chance.standard_normal(6)) for _ in range(12)])
    assert one is not None
    assert one.p < 0.01, "what is there is found"


@given(st.lists(NUMBERS, min_size=2, max_size=6))
def test_spread_is_mean_sample_deviation_and_interval(values: list[float]) -> None:
    found = spread([None, *values])
    assert found is not None
    assert found.n == len(values)
    assert found.mean == pytest.approx(statistics.mean(values), abs=1e-9)
    assert found.deviation == pytest.approx(statistics.stdev(values), abs=1e-6)
    if len(set(values)) > 1:
        low, high = stats.ttest_1samp(values, 0).confidence_interval()
        assert found.half_width == pytest.approx((high - low) / 2, rel=1e-6)


def test_spread_of_one_has_no_deviation() -> None:
    found = spread([2.0])
    assert found is not None
    assert (found.mean, found.deviation, found.half_width, found.n) == (2.0, None, None, 1)
    assert spread([None]) is None
