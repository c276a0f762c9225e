"""Best-fit-decreasing: which documents share a row, from their lengths alone."""

from dataclasses import dataclass

import numpy as np

Piece = tuple[int, int, int]
"""A document, and the first token and the number of tokens of a part of it."""


@dataclass(frozen=True)
class BestFitRows:
    """The rows of a window of documents.

    Args:
        bounds: The first piece of each row, and the end of the last, ``(rows + 1,)``.
        documents: Of each piece, the document, counted from the first of the window, ``(pieces,)``.
        begins: Its first token in the document.
        lengths: Its tokens.
    """

    bounds: np.ndarray
    documents: np.ndarray
    begins: np.ndarray
    lengths: np.ndarray

    @property
    def count(self) -> int:
        """Rows of the window."""
        return len(self.bounds) - 1

    def pieces(self, row: int) -> list[Piece]:
        """What a row holds, in order."""
        piece = slice(self.bounds[row], self.bounds[row + 1])
        columns = (self.documents[piece], self.begins[piece], self.lengths[piece])
        return list(zip(*(column.tolist() for column in columns), strict=True))


def best_fit(lengths: np.ndarray, capacity: int) -> BestFitRows:
    """The rows of the documents with these ``lengths``.

    A document longer than a row fills whole rows, which come first. Longest first, each remainder goes into the row
    with the least sufficient room, or else into a new row. Remainders of one length are placed together, so the time
    depends on the number of different lengths more than on the number of documents.

    Args:
        lengths: Tokens of each document, ``(documents,)``.
        capacity: Tokens per row.
    """
    whole, rests = np.divmod(lengths, capacity)
    full = np.repeat(np.arange(len(lengths)), whole)
    of_document = np.arange(len(full)) - np.repeat(np.cumsum(whole) - whole, whole)
    order = _longest_first(rests, capacity)
    rows, count = _rows_of(np.bincount(rests, minlength=capacity), capacity, len(full))
    rows_of_pieces = np.concatenate([np.arange(len(full)), rows])
    by_row = np.argsort(rows_of_pieces, kind="stable")
    return BestFitRows(
        np.append(0, np.cumsum(np.bincount(rows_of_pieces, minlength=count))),
        np.concatenate([full, order])[by_row],
        np.concatenate([of_document * capacity, whole[order] * capacity])[by_row],
        np.concatenate([np.full(len(full), capacity), rests[order]])[by_row],
    )


def _longest_first(rests: np.ndarray, capacity: int) -> np.ndarray:
    """The documents that have a remainder, the longest remainders first; of equal ones, the first document."""
    kind = np.uint16 if capacity < 2**16 else np.int64  # numpy sorts 16 bits in a time proportional to their number
    order: np.ndarray = np.argsort((capacity - rests).astype(kind), kind="stable")[: np.count_nonzero(rests)]
    return order


def _rows_of(counts: np.ndarray, capacity: int, first: int) -> tuple[np.ndarray, int]:
    """The row of each remainder, the longest first, and the number of rows.

    While rows with the least sufficient room take remainders of one length, no other row does: what is left of such a
    row is less than any other sufficient room. So each is filled before the next, the latest to get that room first.

    Args:
        counts: Remainders of each length, ``(capacity,)``.
        capacity: Tokens per row.
        first: Number of the first new row.
    """
    rows_with_room: list[list[int]] = [[] for _ in range(capacity)]
    rows: list[int] = []
    rooms, count = 0, first  # bit r of rooms: some row has room for exactly r tokens
    lengths = np.flatnonzero(counts[1:])[::-1] + 1
    for length, left in zip(lengths.tolist(), counts[lengths].tolist(), strict=True):
        while left:
            sufficient = rooms >> length
            room = length + (sufficient & -sufficient).bit_length() - 1 if sufficient else capacity
            each = room // length
            wanted = -(-left // each)
            if sufficient:
                same = rows_with_room[room]
                chosen = same[: -wanted - 1 : -1]
                del same[-wanted:]
                if not same:
                    rooms ^= 1 << room
            else:
                chosen = list(range(count, count + wanted))
                count += wanted
            placed = min(left, each * len(chosen))
            left -= placed
            filled, more = divmod(placed, each)
            rows += chosen if each == 1 else [row for row in chosen for _ in range(each)][:placed]
            for rest, these in ((room - each * length, chosen[:filled]), (room - more * length, chosen[filled:])):
                if rest and these:
                    rows_with_room[rest].extend(these)
                    rooms |= 1 << rest
    return np.array(rows, dtype=np.int64), count
