"""Rank correlations of what lies inside a run, such as its layers."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

_SHUFFLES = 9999


@dataclass(frozen=True)
class RankCorrelation:
    """Spearman's ρ (1904) inside runs, averaged over their points, and its p-value.

    Args:
        rho: From −1 to 1.
        p: Of a two-sided permutation test.
        n: The number of points.
        runs: The number of runs.
    """

    rho: float
    p: float
    n: int
    runs: int


def correlation_within(runs: Sequence[tuple[Sequence[float], Sequence[float]]]) -> RankCorrelation | None:
    """Whether y rises with x inside the runs; None where no run has three points that differ on both sides.

    Ranks are taken within each run, ties sharing their mean rank. What differs from run to run, such as a setting that
    moves all layers at once, thus makes no correlation. The test permutes the points, with one permutation for all
    runs that have the same number of points: such runs, above all those that differ in their seed, have much of their
    profile in common, so they are not independent evidence. Points of smooth profiles are not independent either: the
    test then errs more often than p says.

    Args:
        runs: The x and y of each run, of equal length.
    """
    ranked = [
        (_standard_ranks(x), _standard_ranks(y)) for x, y in runs if len(x) > 2 and len(set(x)) > 1 and len(set(y)) > 1
    ]
    if not ranked:
        return None
    chance, n = np.random.default_rng(0), sum(len(x) for x, _ in ranked)
    rho = sum(float(x @ y) for x, y in ranked) / n
    shuffled = np.zeros(_SHUFFLES)
    for size in sorted({len(x) for x, _ in ranked}):
        products = np.sum([np.outer(x, y) for x, y in ranked if len(x) == size], axis=0)
        orders = chance.permuted(np.tile(np.arange(size), (_SHUFFLES, 1)), axis=1)
        shuffled += products[np.arange(size), orders].sum(axis=1)
    reached = int((np.abs(shuffled) / n >= abs(rho) - 1e-12).sum())
    return RankCorrelation(rho, (reached + 1) / (_SHUFFLES + 1), n, len(ranked))


def _standard_ranks(values: Sequence[float]) -> np.ndarray:
    """Ranks, with ties averaged, standardised to mean 0 and standard deviation 1."""
    array = np.asarray(values, dtype=np.float64)
    _, inverse, counts = np.unique(array, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    ranks: np.ndarray = (last - (counts - 1) / 2)[inverse]
    standard: np.ndarray = (ranks - ranks.mean()) / ranks.std()
    return standard
