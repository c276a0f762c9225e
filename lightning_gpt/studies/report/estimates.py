"""Means over seeds, and the intervals that hold them."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

from scipy import special

LEVEL = 0.05
"""The rate of false alarms that a report allows itself; an interval misses the true value at the same rate."""


@dataclass(frozen=True)
class SeedSpread:
    """A figure of one setting over its seeds.

    Args:
        values: One value per seed; at least one.
    """

    values: tuple[float, ...]

    @property
    def n(self) -> int:
        """The number of seeds."""
        return len(self.values)

    @cached_property
    def mean(self) -> float:
        """The mean over the seeds."""
        return math.fsum(self.values) / self.n

    @cached_property
    def deviation(self) -> float | None:
        """The sample standard deviation; None for one value."""
        if self.n == 1:
            return None
        return math.sqrt(math.fsum((value - self.mean) ** 2 for value in self.values) / (self.n - 1))

    @cached_property
    def half_width(self) -> float | None:
        """Half the mean's confidence interval: Student's t times the standard error; None for one value."""
        if self.deviation is None:
            return None
        return t_quantile(self.n - 1, LEVEL) * self.deviation / math.sqrt(self.n)

    def scaled(self, factor: float) -> "SeedSpread":
        """The same figure in another unit."""
        return SeedSpread(tuple(value * factor for value in self.values))


def spread(values: Iterable[float | None]) -> SeedSpread | None:
    """The spread of the values that are not None; None where all are."""
    known = tuple(value for value in values if value is not None)
    return SeedSpread(known) if known else None


def t_quantile(df: float, level: float) -> float:
    """What |t| exceeds with probability ``level``, under Student's distribution with ``df`` degrees of freedom."""
    return float(special.stdtrit(df, 1 - level / 2))


def t_tail(df: float, t: float) -> float:
    """The probability that |t| exceeds ``t`` under Student's distribution with ``df`` degrees of freedom."""
    return float(2 * special.stdtr(df, -abs(t)))
