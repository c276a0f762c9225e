"""The rows of ``best_fit`` windows as ``prepare`` stores them, so that a process looks up its own.

``train.best_fit.npy`` is one array of int64: tokens per row and the numbers of windows, rows and pieces; of each
window its first document, its tokens and its first row; the first piece of each row; and each piece's document (counted
from the first of its window), first token and length. A window is known by where it begins and how many tokens it has.
"""

from collections.abc import Sequence

import numpy as np

from lightning_gpt.data.best_fit import BestFitRows

FITTED = "train.best_fit.npy"
_SIZES = 4


def fitted_array(windows: Sequence[tuple[int, int, BestFitRows]], row_tokens: int) -> np.ndarray:
    """The array of these windows: of each, its first document, its tokens and its rows."""
    rows = [found for _, _, found in windows]
    pieces = np.cumsum([0, *(len(each.documents) for each in rows)])
    bounds = [each.bounds[:-1] + before for each, before in zip(rows, pieces, strict=False)]
    counts = [len(windows), sum(each.count for each in rows), int(pieces[-1])]
    columns = [
        np.array([row_tokens, *counts]),
        np.array([first for first, _, _ in windows]),
        np.array([tokens for _, tokens, _ in windows]),
        np.cumsum([0, *(each.count for each in rows)]),
        *bounds,
        pieces[-1:],
        *(each.documents for each in rows),
        *(each.begins for each in rows),
        *(each.lengths for each in rows),
    ]
    return np.concatenate(columns).astype(np.int64)


class FittedWindows:
    """Reads such an array.

    Args:
        array: It, memory-mapped.
    """

    def __init__(self, array: np.ndarray) -> None:
        self.row_tokens, windows, rows, pieces = array[:_SIZES].tolist()
        sizes = [windows, windows, windows + 1, rows + 1, pieces, pieces]
        self._firsts, self._tokens, self._first_rows, self._bounds, *self._pieces = np.split(
            array[_SIZES:], np.cumsum(sizes)
        )

    def window(self, first: int, tokens: int) -> BestFitRows | None:
        """The rows of the window of ``tokens`` tokens from document ``first`` on; None if it is not stored."""
        place = int(np.searchsorted(self._firsts, first))
        if place == len(self._firsts) or (self._firsts[place], self._tokens[place]) != (first, tokens):
            return None
        bounds = self._bounds[self._first_rows[place] : self._first_rows[place + 1] + 1]
        return BestFitRows(bounds, *self._pieces)
