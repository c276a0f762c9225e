"""D'Hondt's rule: which source gives the next rows of a mix.

Each row comes from the source with the smallest ``(taken + 1) / weight``; of several, the first. No source ever falls a
full row behind its share.
"""

import math
from collections.abc import Sequence

import numpy as np


def next_sources(taken: Sequence[int], weights: Sequence[float], count: int) -> np.ndarray:
    """The index of the source of each of the next ``count`` rows, ``(count,)``.

    Args:
        taken: Rows taken from each source so far.
        weights: The sources' shares.
        count: How many rows.
    """
    lags = (np.array(taken)[:, np.newaxis] + np.arange(1, count + 1)) / np.array(weights)[:, np.newaxis]
    # a source's lags increase, so the smallest overall are those that one row at a time would choose, in that order
    return np.argsort(lags, axis=None, kind="stable")[:count] // max(count, 1)


def rows_of_each(taken: Sequence[int], weights: Sequence[float], count: int) -> list[int]:
    """How many of the next ``count`` rows come from each source, in a time that does not depend on ``count``.

    The rule never leaves a source a full row below its share, so all but a few rows are known at once.
    """
    total, weight = sum(taken) + count, math.fsum(weights)
    given = [max(had, int(total * share / weight) - 1) for had, share in zip(taken, weights, strict=True)]
    if sum(given) > total:  # not where the rule alone has led; then row by row
        given = list(taken)
    for _ in range(total - sum(given)):
        lags = [(had + 1) / share for had, share in zip(given, weights, strict=True)]
        given[lags.index(min(lags))] += 1
    return [now - had for now, had in zip(given, taken, strict=True)]
