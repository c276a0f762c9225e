"""Where a sequence of rows stands.

A batch carries a mark rather than a cursor: few cursors are ever saved, and writing one for every batch would cost each
process time in proportion to the rows of all.
"""

from copy import copy
from typing import Any

import numpy as np

Cursor = dict[str, Any]
"""Where to resume, as JSON values."""

SOURCE, DOCUMENT, LENGTH, DIGEST, USED = range(5)
"""The rows of a table of lanes: what each lane reads, and how many rows of it are taken.

The index of the source, the document's number in it, its tokens, and its hash (64 bits, as int64).
"""


def rows_of_lengths(lengths: np.ndarray, step: int) -> np.ndarray:
    """Rows of whole documents, of which each row predicts ``step`` tokens."""
    rows: np.ndarray = -(-lengths // step)
    return rows


class Mark:
    """A position in the rows of a mix of sources.

    Args:
        cursor: The same as plain values.
    """

    def __init__(self, cursor: Cursor) -> None:
        self._cursor = cursor

    @property
    def rows(self) -> int:
        """Rows already taken."""
        return int(self._cursor["rows"])

    @property
    def sources(self) -> dict[str, Cursor]:
        """The position within each source, by its name."""
        found: dict[str, Cursor] = self._cursor["sources"]
        return found

    @property
    def lanes(self) -> int:
        """How many lanes there are; 0 if the rows are not lanes."""
        return len(self._cursor.get("lanes", ()))

    def counting(self, rows: int) -> "Mark":
        """The same position after ``rows`` rows."""
        other = copy(self)
        other._cursor = {**self._cursor, "rows": rows}
        return other

    def cursor(self) -> Cursor:
        """Where to resume, as JSON values: a few hundred bytes per source."""
        return self._cursor


class LaneMark(Mark):
    """A position in the rows of lanes.

    Args:
        cursor: As plain values, without the lanes.
        lanes: What each lane reads, ``(5, lanes)`` int64; kept.
        step: Tokens that a row predicts.
    """

    def __init__(self, cursor: Cursor, lanes: np.ndarray, step: int) -> None:
        super().__init__(cursor)
        self._lanes = lanes
        self._step = step

    @property
    def lanes(self) -> int:
        """How many lanes there are."""
        return len(self._lanes[SOURCE])

    def cursor(self) -> Cursor:
        """Where to resume, as JSON values: about 50 bytes per lane; None for a lane that takes a document next."""
        left = rows_of_lengths(self._lanes[LENGTH], self._step) - self._lanes[USED]
        states = [
            [source, document, length, used, f"{digest & (2**64 - 1):016x}"] if remains else None
            for (source, document, length, digest, used), remains in zip(
                self._lanes.T.tolist(), left.tolist(), strict=True
            )
        ]
        return {**super().cursor(), "lanes": states}
