"""Lines, power laws and rank correlations of a few points."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

_SHUFFLES = 9999


@dataclass(frozen=True)
class Line:
    """``y = intercept + slope · x``, by least squares, with ``r2`` = 1 − residual / total sum of squares."""

    slope: float
    intercept: float
    r2: float
    n: int

    def at(self, x: float) -> float:
        """The line's value at ``x``."""
        return self.intercept + self.slope * x


@dataclass(frozen=True)
class PowerLaw:
    """``y = factor · x^exponent``, by least squares on the logarithms; ``r2`` is that of the logarithms."""

    exponent: float
    factor: float
    r2: float
    n: int

    def at(self, x: float) -> float:
        """The law's value at ``x``."""
        return float(self.factor * x**self.exponent)


def fit_line(x: Sequence[float], y: Sequence[float]) -> Line | None:
    """The line through the points; None for fewer than three different ``x``, where R² would mean nothing."""
    if len(set(x)) < 3:
        return None
    xs, ys = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    from_mean = xs - xs.mean()
    slope = float(from_mean @ (ys - ys.mean()) / (from_mean @ from_mean))
    intercept = float(ys.mean() - slope * xs.mean())
    residual, total = float(((ys - intercept - slope * xs) ** 2).sum()), float(((ys - ys.mean()) ** 2).sum())
    return Line(slope, intercept, 1 - residual / total if total else 1.0, len(xs))


def fit_power(x: Sequence[float], y: Sequence[float]) -> PowerLaw | None:
    """The power law through the points; None for fewer than three different ``x``, or any value of 0 or less."""
    if min([*x, *y], default=0.0) <= 0:
        return None
    line = fit_line([math.log(value) for value in x], [math.log(value) for value in y])
    return None if line is None else PowerLaw(line.slope, math.exp(line.intercept), line.r2, line.n)


@dataclass(frozen=True)
class RankCorrelation:
    """Spearman's ρ (1904) of two sequences, and the p-value of a two-sided permutation test."""

    rho: float
    p: float
    n: int


def rank_correlation(x: Sequence[float], y: Sequence[float]) -> RankCorrelation | None:
    """Spearman's ρ; None for fewer than four pairs, or where a side is constant. Ties share their mean rank."""
    if len(x) < 4 or len(set(x)) < 2 or len(set(y)) < 2:
        return None
    a, b = _standard_ranks(x), _standard_ranks(y)
    rho = float(a @ b) / len(a)
    chance = np.random.default_rng(0)
    shuffled = np.array([a @ chance.permutation(b) for _ in range(_SHUFFLES)]) / len(a)
    reached = int((np.abs(shuffled) >= abs(rho) - 1e-12).sum())
    return RankCorrelation(rho, (reached + 1) / (_SHUFFLES + 1), len(a))


def _standard_ranks(values: Sequence[float]) -> np.ndarray:
    """Ranks, with ties averaged, standardised to mean 0 and standard deviation 1."""
    array = np.asarray(values, dtype=np.float64)
    _, inverse, counts = np.unique(array, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    ranks: np.ndarray = (last - (counts - 1) / 2)[inverse]
    standard: np.ndarray = (ranks - ranks.mean()) / ranks.std()
    return standard
