"""How documents become rows of equal length.

A packing reads tokenised documents from a position on and fills up to so many rows; where it stopped is the position of
the next window. It is a pure function of the documents and the position.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, Protocol

import numpy as np

PackingName = Literal["concatenate", "best_fit", "lanes"]


@dataclass(frozen=True)
class Position:
    """``offset`` tokens into document number ``document`` of a source."""

    document: int = 0
    offset: int = 0


@dataclass(frozen=True)
class Packed:
    """The rows of one window.

    Args:
        rows: ``(rows, row_tokens)`` in the type of the documents' tokens, padded at their ends.
        lengths: ``(rows,)``, tokens of each row that are not padding.
        after: Where the next window starts; None where the documents ended.
        dropped: Tokens that were read and are in no row.
        repeated: How many more tokens stand in the rows than were read for them.
        documents: ``(rows,)``, the number of each row's document where no row holds two; those of one stand together.
    """

    rows: np.ndarray
    lengths: np.ndarray
    after: Position | None
    dropped: int
    repeated: int = 0
    documents: np.ndarray | None = None

    @cached_property
    def padding(self) -> int:
        """Places in rows that hold no token."""
        return self.rows.size - int(self.lengths.sum())

    @property
    def read(self) -> int:
        """Tokens that were read for these rows."""
        return self.rows.size - self.padding - self.repeated + self.dropped


class Packing(Protocol):
    """Fills rows from documents."""

    def pack(
        self, documents: Iterable[tuple[int, np.ndarray]], start: Position, row_tokens: int, most_rows: int
    ) -> Packed:
        """Rows from ``documents`` (number and tokens, from document ``start.document`` on), about ``most_rows``."""


def _unread(number: int, tokens: np.ndarray, start: Position) -> np.ndarray:
    return tokens[start.offset :] if number == start.document else tokens


def _joined(documents: list[np.ndarray]) -> np.ndarray:
    return np.concatenate(documents) if documents else np.empty(0, dtype=np.uint16)


class Concatenate:
    """One stream of tokens, cut every ``row_tokens``: nothing is padded, and what ends a pass unfilled is dropped."""

    def pack(
        self, documents: Iterable[tuple[int, np.ndarray]], start: Position, row_tokens: int, most_rows: int
    ) -> Packed:
        """Exactly ``most_rows`` rows, or fewer where the documents end."""
        wanted, parts, have, after = most_rows * row_tokens, [], 0, None
        for number, tokens in documents:
            parts.append(_unread(number, tokens, start))
            have += len(parts[-1])
            if have >= wanted:
                after = Position(number, len(tokens) - (have - wanted))
                break
        count = min(have, wanted) // row_tokens
        rows = _joined(parts)[: count * row_tokens].reshape(count, row_tokens)
        dropped = 0 if after else have - count * row_tokens
        return Packed(rows, np.full(count, row_tokens), after, dropped)


class BestFit:
    """Whole documents in the rows that they fit best: none that fits a row is cut, and rows are padded at their ends.

    A document longer than a row fills rows of its own and its rest is packed like a document. Ding et al. 2024, "Fewer
    Truncations Improve Language Modeling" (2404.10830), section 3: best-fit-decreasing over the documents of a window.
    """

    def pack(
        self, documents: Iterable[tuple[int, np.ndarray]], start: Position, row_tokens: int, most_rows: int
    ) -> Packed:
        """The rows of as many whole documents as have ``most_rows`` rows of tokens or more."""
        wanted, texts, have, after = most_rows * row_tokens, [], 0, None
        for number, tokens in documents:
            texts.append(_unread(number, tokens, start))
            have += len(texts[-1])
            if have >= wanted:
                after = Position(number + 1, 0)
                break
        rows_of_pieces = best_fit([len(text) for text in texts], row_tokens)
        rows = np.zeros((len(rows_of_pieces), row_tokens), dtype=_joined(texts[:1]).dtype)
        lengths = np.zeros(len(rows_of_pieces), dtype=np.int64)
        for row, pieces in enumerate(rows_of_pieces):
            for document, begin, length in pieces:
                place = lengths[row]
                rows[row, place : place + length] = texts[document][begin : begin + length]
                lengths[row] += length
        return Packed(rows, lengths, after, dropped=0)


def best_fit(lengths: list[int], capacity: int) -> list[list[tuple[int, int, int]]]:
    """Pieces ``(document, begin, length)`` of each row, for documents of these ``lengths``.

    Longest first, each into the row with the least room that still holds it, else into a new one. O(documents ×
    capacity) at the worst: the rows are kept by the room that is left in them.
    """
    rows: list[list[tuple[int, int, int]]] = []
    rests: list[tuple[int, int, int]] = []
    for document, length in enumerate(lengths):
        whole = length - length % capacity
        rows.extend([(document, begin, capacity)] for begin in range(0, whole, capacity))
        if length > whole:
            rests.append((document, whole, length - whole))
    rows_with_room: list[list[int]] = [[] for _ in range(capacity + 1)]
    for piece in sorted(rests, key=lambda piece: -piece[2]):
        room = next((room for room in range(piece[2], capacity) if rows_with_room[room]), None)
        if room is None:
            rows.append([piece])
            row, room = len(rows) - 1, capacity
        else:
            row = rows_with_room[room].pop()
            rows[row].append(piece)
        rows_with_room[room - piece[2]].append(row)
    return rows


class WholeDocuments:
    """Each document in rows of its own, one after the other, the last one padded: what a lane reads.

    The last target of a row is the first input of the next, and the first place of a document's first row is left for
    the ``<|endoftext|>`` that opens it: so every token of the document, its first too, is a target once. A place that
    is left holds 0.
    """

    def pack(
        self, documents: Iterable[tuple[int, np.ndarray]], start: Position, row_tokens: int, most_rows: int
    ) -> Packed:
        """The rows of as many documents as have ``most_rows`` rows or more."""
        step, texts, rows_of, have, after = row_tokens - 1, [], [], 0, None
        for number, tokens in documents:
            texts.append((number, _unread(number, tokens, start)))
            rows_of.append(-(-len(texts[-1][1]) // step))
            have += rows_of[-1]
            if have >= most_rows:
                after = Position(number + 1, 0)
                break
        rows = np.zeros((have, row_tokens), dtype=_joined([text for _, text in texts[:1]]).dtype)
        lengths, first = np.zeros(have, dtype=np.int64), 0
        for (_, text), count in zip(texts, rows_of, strict=True):
            opened = np.zeros(count * step + 1, dtype=rows.dtype)
            opened[1 : len(text) + 1] = text
            rows[first : first + count] = np.lib.stride_tricks.sliding_window_view(opened, row_tokens)[::step]
            lengths[first : first + count] = np.minimum(row_tokens, len(text) + 1 - step * np.arange(count))
            first += count
        numbers = np.repeat(np.array([number for number, _ in texts], dtype=np.int64), rows_of)
        return Packed(rows, lengths, after, dropped=0, repeated=have, documents=numbers)


CONCATENATE = Concatenate()
WHOLE_DOCUMENTS = WholeDocuments()
PACKINGS: dict[PackingName, Packing] = {"concatenate": CONCATENATE, "best_fit": BestFit(), "lanes": WHOLE_DOCUMENTS}
