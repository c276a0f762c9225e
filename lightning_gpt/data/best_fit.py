"""Best-fit-decreasing: which documents share a row, from their lengths alone."""

import numpy as np

Piece = tuple[int, int, int]
"""A document, and the first token and the number of tokens of a part of it."""


class BestFitRows:
    """The rows of the documents with these ``lengths``.

    A document longer than a row fills whole rows, which come first. Longest first, each remainder goes into the row
    with the least sufficient room, or else into a new row. Rows are indexed by their remaining room, and the rooms that
    occur are the bits of one number, so the time is proportional to the number of documents.

    Args:
        lengths: Tokens of each document, ``(documents,)``.
        capacity: Tokens per row.
    """

    def __init__(self, lengths: np.ndarray, capacity: int) -> None:
        whole = lengths // capacity
        full = np.repeat(np.arange(len(lengths)), whole)
        of_document = np.arange(len(full)) - np.repeat(np.cumsum(whole) - whole, whole)
        rests = lengths - whole * capacity
        order = np.argsort(-rests, kind="stable")[: np.count_nonzero(rests)]
        rows, self.count = _rows_of(rests[order].tolist(), capacity, len(full))
        self._documents = np.concatenate([full, order])
        self._begins = np.concatenate([of_document * capacity, whole[order] * capacity])
        self._lengths = np.concatenate([np.full(len(full), capacity), rests[order]])
        rows_of_pieces = np.concatenate([np.arange(len(full)), rows])
        self._by_row = np.argsort(rows_of_pieces, kind="stable")
        self._bounds = np.searchsorted(rows_of_pieces[self._by_row], np.arange(self.count + 1))

    def pieces(self, row: int) -> list[Piece]:
        """What a row holds, in order."""
        chosen = self._by_row[self._bounds[row] : self._bounds[row + 1]]
        columns = (self._documents[chosen], self._begins[chosen], self._lengths[chosen])
        return list(zip(*(column.tolist() for column in columns), strict=True))


def _rows_of(lengths: list[int], capacity: int, first: int) -> tuple[np.ndarray, int]:
    """The row of each piece, of which the longest come first, and the number of rows; new rows begin at ``first``."""
    rows_with_room: list[list[int]] = [[] for _ in range(capacity)]
    rooms, rows, count = 0, [], first  # bit r of rooms: some row has room for exactly r tokens
    for length in lengths:
        sufficient = rooms >> length
        if sufficient:
            room = length + (sufficient & -sufficient).bit_length() - 1
            same = rows_with_room[room]
            row = same.pop()
            if not same:
                rooms ^= 1 << room
        else:
            room, row, count = capacity, count, count + 1
        if room > length:
            rows_with_room[room - length].append(row)
            rooms |= 1 << (room - length)
        rows.append(row)
    return np.array(rows, dtype=np.int64), count
