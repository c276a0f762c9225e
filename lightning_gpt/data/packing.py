"""Packing documents into rows of equal length.

A packing reads tokenised documents from a position on and fills the rows of one window; the next window starts where it
stopped. The rows are a pure function of the documents and the position.
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
        rows: ``(rows, row_tokens)`` in the dtype of the documents' tokens, padded at the end with 0.
        lengths: Tokens in each row that are not padding, ``(rows,)``.
        after: The start of the next window; None if the documents ended.
        dropped: Tokens that were read but are not in any row.
        repeated: Tokens in the rows beyond those that were read, because some stand in two rows or were added.
        documents: The number of each row's document, ``(rows,)``, if no row holds two; rows of a document are adjacent.
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
        """Tokens that were read to fill these rows."""
        return self.rows.size - self.padding - self.repeated + self.dropped


class Packing(Protocol):
    """Fills rows with documents."""

    def pack(
        self, documents: Iterable[tuple[int, np.ndarray]], start: Position, row_tokens: int, most_rows: int
    ) -> Packed:
        """Fill about ``most_rows`` rows of ``row_tokens`` tokens.

        Args:
            documents: Number and tokens of each document, from document ``start.document`` on.
            start: The first token to use.
            row_tokens: Tokens per row.
            most_rows: Rows to fill; subclasses define how closely they keep to it.
        """


def _unread(number: int, tokens: np.ndarray, start: Position) -> np.ndarray:
    return tokens[start.offset :] if number == start.document else tokens


def _joined(documents: list[np.ndarray]) -> np.ndarray:
    return np.concatenate(documents) if documents else np.empty(0, dtype=np.uint16)


class Concatenate:
    """Concatenates all documents and cuts the result into rows: no padding; an incomplete last row is dropped."""

    def pack(
        self, documents: Iterable[tuple[int, np.ndarray]], start: Position, row_tokens: int, most_rows: int
    ) -> Packed:
        """Exactly ``most_rows`` rows, or fewer if the documents end."""
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
    """Best-fit-decreasing packing of the documents of a window; a document that fits into a row is never cut.

    A document longer than a row fills whole rows, and the remainder is packed like a document. Rows are padded at the
    end. Ding et al. 2024, "Fewer Truncations Improve Language Modeling" (2404.10830), section 3.
    """

    def pack(
        self, documents: Iterable[tuple[int, np.ndarray]], start: Position, row_tokens: int, most_rows: int
    ) -> Packed:
        """The rows of whole documents, as many as are needed for ``most_rows`` rows of tokens."""
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
    """The pieces ``(document, begin, length)`` of each row, for documents of these ``lengths``.

    Longest first, each piece goes into the row with the least sufficient room, or else into a new row. Rows are indexed
    by their remaining room, so the worst case is O(documents × capacity).
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
    """Each document in its own consecutive rows, the last one padded: the rows that a lane reads.

    The last target of a row is the first input of the next. The first place of a document's first row is reserved for
    an ``<|endoftext|>`` and holds 0, so every token of the document, including the first, is a target exactly once.
    """

    def pack(
        self, documents: Iterable[tuple[int, np.ndarray]], start: Position, row_tokens: int, most_rows: int
    ) -> Packed:
        """The rows of whole documents, as many as are needed for ``most_rows`` rows."""
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
