"""Differences between settings: how large they are, whether they are more than chance, and what could be seen."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from scipy import special

from lightning_gpt.studies.report.estimates import LEVEL, SeedSpread, t_quantile, t_tail
from lightning_gpt.studies.report.shared_error import shared_error

POWER = 0.8
"""The power of a test: the share of studies that would find a true difference of the smallest size shown."""

_SHARED_FROM = 8
"""So many settings say how large the error of one of them is."""

_SEEDS_TO_SHARE = 3
"""With two seeds, variances that truly differ are not told from equal ones, and false alarms would be too many."""

_ROUNDING = 1e-12


@dataclass(frozen=True)
class Comparison:
    """The mean difference between two settings in one measure, with Student's test of whether it is 0.

    Args:
        difference: The first setting's mean minus the second's.
        error: The standard error of the difference.
        df: Its degrees of freedom.
        p: The two-sided p-value, not yet corrected for other comparisons.
        how: ``paired``: seed by seed; ``shared``: with the error that many settings share; ``welch``: of other seeds.
        n: The number of pairs, or of seeds of the smaller setting.
    """

    difference: float
    error: float
    df: float
    p: float
    how: Literal["paired", "shared", "welch"]
    n: int

    @property
    def half_width(self) -> float:
        """Half the width of the difference's confidence interval."""
        return t_quantile(self.df, LEVEL) * self.error


def compare(first: Mapping[int, float], second: Mapping[int, float]) -> Comparison | None:
    """Compare two settings, each a value by seed: paired over the seeds they share, or Welch's test.

    A seed sets weights and order of the data, so settings that share seeds share part of their luck, which differences
    seed by seed leave out. None where neither test can be made: it takes two seeds.
    """
    shared = sorted(first.keys() & second.keys())
    if len(shared) > 1:
        differences = SeedSpread(tuple(first[seed] - second[seed] for seed in shared))
        error = (differences.deviation or 0.0) / math.sqrt(len(shared))
        size = max(abs(side[seed]) for side in (first, second) for seed in shared)
        return _tested(differences.mean, error, len(shared) - 1, size, "paired", len(shared))
    a, b = SeedSpread(tuple(first.values())), SeedSpread(tuple(second.values()))
    if a.deviation is None or b.deviation is None:
        return None
    parts = (a.deviation**2 / a.n, b.deviation**2 / b.n)
    error, size = math.sqrt(sum(parts)), max(map(abs, (*a.values, *b.values)))
    squares = parts[0] ** 2 / (a.n - 1) + parts[1] ** 2 / (b.n - 1)
    df = sum(parts) ** 2 / squares if squares else a.n + b.n - 2
    return _tested(a.mean - b.mean, error, df, size, "welch", min(a.n, b.n))


def gains(first: Mapping[int, float], last: Mapping[int, float]) -> dict[int, float]:
    """By how much a measure falls from one setting to another, by seed, of the seeds that both have.

    Gains are compared like any measure, so that a seed's luck with one end of an axis, which all settings share there,
    is left out of the difference between two gains.
    """
    return {seed: first[seed] - last[seed] for seed in sorted(first.keys() & last.keys())}


def compare_with(base: str, values: Mapping[str, Mapping[int, float]]) -> dict[str, Comparison]:
    """Compare each setting with ``base``, by name; settings that cannot be tested are left out.

    From eight settings on that were run with the same three seeds or more, their error is shared: see
    :class:`~lightning_gpt.studies.report.shared_error.SharedError`.
    """
    seeds = sorted(values[base])
    alike = {name: [row[seed] for seed in seeds] for name, row in values.items() if sorted(row) == seeds}
    shared = shared_error(alike) if len(alike) >= _SHARED_FROM and len(seeds) >= _SEEDS_TO_SHARE else None
    found = {}
    for name, row in values.items():
        if name == base:
            continue
        if shared is not None and name in alike:
            difference = SeedSpread(tuple(alike[name])).mean - SeedSpread(tuple(alike[base])).mean
            error, df = shared.of(name, base)
            found[name] = Comparison(difference, error, df, t_tail(df, difference / error), "shared", len(seeds))
        elif (each := compare(row, values[base])) is not None:
            found[name] = each
    return found


def _tested(
    difference: float, error: float, df: float, size: float, how: Literal["paired", "welch"], n: int
) -> Comparison:
    """The comparison; what differs by no more than rounding does not differ, and what never varies is certain."""
    nothing = _ROUNDING * size
    if error <= nothing:
        return Comparison(difference, 0.0, df, 1.0 if abs(difference) <= nothing else 0.0, how, n)
    return Comparison(difference, error, df, t_tail(df, difference / error), how, n)


def holm(p: Sequence[float]) -> list[float]:
    """p-values corrected for their number (Holm 1979): all that are up to LEVEL hold together at that rate of error."""
    corrected, largest = [1.0] * len(p), 0.0
    for rank, number in enumerate(sorted(range(len(p)), key=p.__getitem__)):
        largest = max(largest, min(1.0, (len(p) - rank) * p[number]))
        corrected[number] = largest
    return corrected


def smallest_effect(error: float, df: float, level: float = LEVEL) -> float:
    """The true difference that Student's test finds at ``level`` with a probability of POWER.

    Args:
        error: The standard error of the difference.
        df: Its degrees of freedom.
        level: The p-value up to which a difference counts.
    """
    # t follows the noncentral t distribution, shifted by difference / error
    return error * float(special.nctdtrinc(df, 1 - POWER, t_quantile(df, level)))


def usual_error(comparisons: Sequence[Comparison]) -> float:
    """The root mean square of the standard errors of comparisons: one of them alone, of few seeds, is largely luck."""
    return math.sqrt(math.fsum(each.error**2 for each in comparisons) / len(comparisons))
