"""Comparisons of settings against scipy's tests, and their rates of error and power by simulation."""

from collections.abc import Mapping

import numpy as np
import pytest
from scipy import stats

from lightning_gpt.studies.report.comparisons import (
    POWER,
    Comparison,
    compare,
    compare_with,
    gains,
    holm,
    smallest_effect,
    usual_error,
)
from lightning_gpt.studies.report.document import Findings, Tested, Written
from lightning_gpt.studies.report.estimates import LEVEL
from lightning_gpt.studies.report.fits import fit_forms, ruled_out
from lightning_gpt.studies.report.tested import written


def seeds(values: np.ndarray) -> dict[int, float]:
    return {seed: float(value) for seed, value in enumerate(values)}


def test_shared_seeds_are_paired() -> None:
    draw = np.random.default_rng(0)
    luck, noise = 3 * draw.standard_normal(5), draw.standard_normal((2, 5))
    first, second = luck + noise[0] + 1.0, luck + noise[1]
    found, expected = compare(seeds(first), seeds(second)), stats.ttest_rel(first, second)
    assert found is not None
    assert (found.how, found.n, found.df) == ("paired", 5, 4)
    assert found.p == pytest.approx(expected.pvalue)
    low, high = expected.confidence_interval(1 - LEVEL)
    assert (found.difference - found.half_width, found.difference + found.half_width) == pytest.approx((low, high))


def test_other_seeds_are_compared_by_welch() -> None:
    first, second = np.array([1.0, 2.0, 4.0]), np.array([3.0, 9.0])
    found = compare(seeds(first), {7: 3.0, 8: 9.0})
    expected = stats.ttest_ind(first, second, equal_var=False)
    assert found is not None
    assert (found.how, found.n, found.df) == ("welch", 2, pytest.approx(expected.df))
    assert found.p == pytest.approx(expected.pvalue)


def test_only_the_seeds_that_both_have_are_paired() -> None:
    found = compare({0: 1.0, 1: 2.0, 2: 4.0, 3: 99.0}, {0: 0.0, 1: 2.0, 2: 1.0})
    assert found is not None
    assert (found.difference, found.n) == (pytest.approx(4 / 3), 3)


def test_one_seed_shows_nothing_and_what_never_varies_is_certain() -> None:
    assert compare({0: 1.0}, {0: 2.0}) is None
    assert compare({0: 1.0, 1: 2.0}, {2: 2.0}) is None
    same, other = compare({0: 1.0, 1: 1.0}, {0: 1.0, 1: 1.0}), compare({0: 0.3, 1: 0.3}, {0: 0.1, 1: 0.1})
    assert same is not None
    assert other is not None
    assert (same.p, other.p, other.error) == (1.0, 0.0, 0.0)


def test_holm() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])  # Holm 1979's own arithmetic
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


def test_all_tests_of_a_report_are_one_family() -> None:
    def write(p: list[float], tests: int) -> list[Written]:
        return [Findings([f"{each:.3g} of {tests}" for each in p])]

    done = written([Tested([0.01, 0.5], write), Findings(["between"]), Tested([], write), Tested([0.02], write)])
    assert [block.sentences for block in done if isinstance(block, Findings)] == [
        ["0.03 of 3", "0.5 of 3"],
        ["between"],
        [],
        ["0.04 of 3"],
    ]


def family(
    draw: np.random.Generator, settings: int, n: int, uneven: float, effect: float = 0.0
) -> Mapping[str, Comparison]:
    """Settings whose seeds share luck; the sizes of their own noise differ by a factor exp(uneven) or so. The second
    setting truly differs from the first, by ``effect``."""
    noise, luck = np.exp(uneven * draw.standard_normal(settings)), 2 * draw.standard_normal(n)
    values = {str(each): seeds(luck + noise[each] * draw.standard_normal(n)) for each in range(settings)}
    values["1"] = {seed: value + effect for seed, value in values["1"].items()}
    return compare_with("0", values)


@pytest.mark.parametrize(
    ("settings", "n", "uneven"),
    [(2, 2, 0.0), (4, 2, 0.0), (4, 3, 0.5), (8, 3, 0.5), (12, 3, 0.0), (12, 3, 1.0), (12, 2, 0.5), (30, 5, 0.5)],
)
def test_false_alarms_are_as_rare_as_stated(settings: int, n: int, uneven: float) -> None:
    """Nothing differs: at most LEVEL of all studies say that anything does, with few seeds and uneven noise too."""
    draw, studies = np.random.default_rng(1), 1000
    alarms = sum(
        min(holm([each.p for each in family(draw, settings, n, uneven).values()])) <= LEVEL for _ in range(studies)
    )
    assert alarms <= stats.binom.ppf(0.995, studies, LEVEL)
    if settings == 2:
        assert alarms >= stats.binom.ppf(0.005, studies, LEVEL), "one test alone has the stated rate, no less"


@pytest.mark.parametrize(("settings", "n"), [(3, 3), (8, 3)])
def test_gains_that_are_equal_are_seldom_told_apart(settings: int, n: int) -> None:
    """A seed's luck differs between the ends of the axis, and settings differ in the measure but not in the gain."""
    draw, studies, alarms = np.random.default_rng(7), 600, 0
    for _ in range(studies):
        noise, luck = np.exp(0.5 * draw.standard_normal(settings)), 3 * draw.standard_normal((2, n))
        levels = 5 * draw.standard_normal(settings)
        made = {}
        for each in range(settings):
            first, last = levels[each] + luck + noise[each] * draw.standard_normal((2, n))
            made[str(each)] = gains(seeds(first + 1.0), seeds(last))
        alarms += min(holm([each.p for each in compare_with("0", made).values()])) <= LEVEL
    assert alarms <= stats.binom.ppf(0.995, studies, LEVEL)


def test_the_usual_rule_of_thumb_would_fail_this() -> None:
    """Beyond twice the spread between two seeds, which reports used to go by, is chance in a fifth of all studies."""
    draw = np.random.default_rng(2)
    pairs = draw.standard_normal((4000, 2, 2))
    pooled = np.sqrt(pairs.var(axis=2, ddof=1).mean(axis=1))
    assert (np.abs(pairs.mean(axis=2)[:, 0] - pairs.mean(axis=2)[:, 1]) > 2 * pooled).mean() > 0.15


@pytest.mark.parametrize(("n", "tests"), [(2, 1), (3, 1), (3, 10), (5, 10)])
def test_the_smallest_effect_is_found_as_often_as_stated(n: int, tests: int) -> None:
    draw, studies = np.random.default_rng(3), 2000
    effect = smallest_effect(np.sqrt(2 / n), n - 1, LEVEL / tests)  # the true error, of noise of size 1
    found = 0
    for _ in range(studies):
        each = compare(seeds(draw.standard_normal(n) + effect), seeds(draw.standard_normal(n)))
        assert each is not None
        found += each.p <= LEVEL / tests
    low, high = stats.binom.ppf([0.005, 0.995], studies, POWER)
    assert low <= found <= high


def test_many_settings_find_what_each_alone_does_not() -> None:
    """With 3 seeds and 20 settings, an effect of 6 times the noise is found, which pairs do not find."""
    draw, shared, alone = np.random.default_rng(4), 0, 0
    for _ in range(100):
        tests = family(draw, 20, 3, 0.0, effect=6.0)
        assert {each.how for each in tests.values()} == {"shared"}
        shared += holm([each.p for each in tests.values()])[0] <= LEVEL
        draw_pair = compare(seeds(draw.standard_normal(3) + 6.0), seeds(draw.standard_normal(3)))
        assert draw_pair is not None
        alone += draw_pair.p <= LEVEL / 19
    assert shared > 90
    assert alone < 30


def test_a_setting_that_lacks_a_seed_is_compared_on_its_own() -> None:
    draw = np.random.default_rng(5)
    values = {str(each): seeds(draw.standard_normal(3)) for each in range(9)}
    del values["8"][2]
    tests = compare_with("0", values)
    assert [tests[str(each)].how for each in (1, 7, 8)] == ["shared", "shared", "paired"]
    assert tests["8"].n == 2
    sizes = {str(each): dict.fromkeys(range(3), 100.0 * each) for each in range(9)}  # no seed changes anything
    exact = compare_with("0", sizes)
    assert {(each.how, each.p, each.error) for each in exact.values()} == {("paired", 0.0, 0.0)}


def test_the_usual_error_is_that_of_all_comparisons() -> None:
    made = [Comparison(0.0, error, 2, 0.5, "paired", 3) for error in (3.0, 4.0)]
    assert usual_error(made) == pytest.approx(np.sqrt(12.5))


@pytest.mark.parametrize("seeds_each", [2, 3])
def test_a_true_form_is_seldom_ruled_out(seeds_each: int) -> None:
    """A linear cost with noise of 5 % is not called anything else, and x^1.3 is not called a line."""
    draw, studies = np.random.default_rng(6), 120
    x = np.repeat([2.0, 4.0, 8.0, 12.0, 24.0], seeds_each)
    wrong, told, covered = 0, 0, 0
    for _ in range(studies):
        noise = np.exp(0.05 * draw.standard_normal(len(x)))
        forms = fit_forms(list(x), list((10 + 5 * x) * noise))
        wrong += any(ruled_out(form, forms, len(x)) for form in forms if form.kind == "linear")
        forms = fit_forms(list(x), list(3 * x**1.3 * noise))
        power = next(form for form in forms if form.kind == "power")
        wrong += ruled_out(power, forms, len(x))
        told += any(ruled_out(form, forms, len(x)) for form in forms if form.kind == "linear")
        covered += abs(power.p - 1.3) <= power.half_width
    assert wrong <= stats.binom.ppf(0.995, 2 * studies, LEVEL)
    assert told > 0.9 * studies
    assert covered >= stats.binom.ppf(0.005, studies, 1 - LEVEL)
