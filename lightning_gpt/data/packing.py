"""Packing documents into rows of equal length.

A packing reads tokenised documents from a position on and fills the rows of one window; the next window starts where it
stopped. The rows are a pure function of the documents and the position.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, Protocol

import numpy as np

from lightning_gpt.data.best_fit import best_fit
from lightning_gpt.data.window import hash_of

PADDING = -100
"""Marks places in a row that hold no token. As a target, the loss ignores it."""

PackingName = Literal["concatenate", "best_fit", "lanes"]


@dataclass(frozen=True)
class Position:
    """``offset`` tokens into document number ``document`` of a source."""

    document: int = 0
    offset: int = 0


def table_of(numbers: np.ndarray, lengths: np.ndarray, hashes: np.ndarray) -> np.ndarray:
    """Documents by number in their source, tokens and hash (uint64), as ``(3, documents)`` int64."""
    return np.stack([numbers.astype(np.int64), lengths.astype(np.int64), hashes.view(np.int64)])


class WindowRows(Protocol):
    """The rows of one window."""

    @property
    def after(self) -> Position | None:
        """The start of the next window; None if the documents ended."""

    @property
    def count(self) -> int:
        """Rows of the window."""

    @property
    def dropped(self) -> int:
        """Tokens that belong to the window but are not in any row."""

    @property
    def padding(self) -> int:
        """Places in rows that hold no token."""

    @property
    def read(self) -> int:
        """Tokens that the window stands for."""

    @property
    def whole_documents(self) -> np.ndarray:
        """Number, tokens and hash of its documents, ``(3, documents)`` int64, if no row holds two."""

    def take(self, chosen: np.ndarray) -> np.ndarray:
        """The rows with these numbers, ``(rows, row_tokens)`` int64, padded with :data:`PADDING`."""

    def held(self, places: np.ndarray) -> list[np.ndarray]:
        """The tokens of the documents at these places, ``(length,)`` each; none if an index finds them by number."""


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

    @property
    def count(self) -> int:
        """Rows of the window."""
        return len(self.rows)

    def take(self, chosen: np.ndarray) -> np.ndarray:
        """The rows with these numbers, ``(rows, row_tokens)`` int64, padded with :data:`PADDING`."""
        rows: np.ndarray = self.rows[chosen].astype(np.int64)
        if self.padding:
            rows[np.arange(self.rows.shape[1]) >= self.lengths[chosen, np.newaxis]] = PADDING
        return rows

    @cached_property
    def _bounds(self) -> np.ndarray:
        """The first row of each document, and the number of rows."""
        assert self.documents is not None
        return np.append(np.flatnonzero(np.diff(self.documents, prepend=-1)), len(self.rows))

    def _document(self, place: int) -> np.ndarray:
        """The tokens of the document at this place among those of the window, in memory of their own."""
        rows = slice(self._bounds[place], self._bounds[place + 1])
        length = int(self.lengths[rows].sum()) - (rows.stop - rows.start)
        # a copy: a view would keep the whole window in memory while a long document is read
        return self.rows[rows, 1:].reshape(-1)[:length].copy()

    @cached_property
    def whole_documents(self) -> np.ndarray:
        """Number, tokens and hash of its documents, ``(3, documents)`` int64, if no row holds two."""
        assert self.documents is not None
        texts = [self._document(place) for place in range(len(self._bounds) - 1)]
        lengths = np.array([len(text) for text in texts], dtype=np.int64)
        hashes = np.array([hash_of(text) for text in texts], dtype=np.uint64)
        return table_of(self.documents[self._bounds[:-1]], lengths, hashes)

    def held(self, places: np.ndarray) -> list[np.ndarray]:
        """The tokens of the documents at these places, ``(length,)`` each."""
        return [self._document(place) for place in places.tolist()]

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
        fit = best_fit(np.array([len(text) for text in texts], dtype=np.int64), row_tokens)
        rows = np.zeros((fit.count, row_tokens), dtype=_joined(texts[:1]).dtype)
        lengths = np.zeros(fit.count, dtype=np.int64)
        for row in range(fit.count):
            for document, begin, length in fit.pieces(row):
                place = lengths[row]
                rows[row, place : place + length] = texts[document][begin : begin + length]
                lengths[row] += length
        return Packed(rows, lengths, after, dropped=0)


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
