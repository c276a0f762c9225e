"""The windows of a prepared source, by its index: what lies where follows from the lengths of its documents.

The rows are those that :class:`~lightning_gpt.data.stream.Windows` reads, with the same positions and digests. Tokens
are read for the rows that are taken and for no others.
"""

from collections.abc import Mapping, Sequence
from functools import cached_property, partial

import numpy as np

from lightning_gpt.data.best_fit import BestFitRows, Piece, best_fit
from lightning_gpt.data.document_index import DocumentIndex
from lightning_gpt.data.fitted import fitted_array
from lightning_gpt.data.mark import rows_of_lengths
from lightning_gpt.data.packing import (
    PACKINGS,
    PADDING,
    BestFit,
    Concatenate,
    Packing,
    Position,
    WholeDocuments,
    table_of,
)
from lightning_gpt.data.sources.base import SourceBase
from lightning_gpt.data.window import FoundAgain, Window


class IndexedWindow:
    """The rows of a window, read when they are taken.

    Args:
        index: The documents.
        row_tokens: Tokens per row.
        first: The first document.
        end: The document after the last one that is in the window, even if in part.
        start: The window's first token, counted from the beginning of the pass.
        after: The start of the next window; None if the documents end.
    """

    def __init__(
        self, index: DocumentIndex, row_tokens: int, first: int, end: int, start: int, after: Position | None
    ) -> None:
        self.index, self.row_tokens, self.first, self.end, self.start = index, row_tokens, first, end, start
        self.after = after

    @property
    def count(self) -> int:
        """Rows of the window."""
        raise NotImplementedError

    @property
    def read(self) -> int:
        """Tokens that the window stands for."""
        return self.index.before(self.end) - self.start

    @property
    def dropped(self) -> int:
        """Tokens that belong to the window but are not in any row."""
        return 0

    @property
    def repeated(self) -> int:
        """Tokens in the rows beyond those that were read."""
        return 0

    @property
    def padding(self) -> int:
        """Places in rows that hold no token."""
        return self.count * self.row_tokens - (self.read - self.dropped + self.repeated)

    def pieces(self, row: int) -> Sequence[Piece]:
        """What a row consists of; documents by their places in the index."""
        raise NotImplementedError

    @property
    def whole_documents(self) -> np.ndarray:
        """Number, tokens and hash of its documents, ``(3, documents)`` int64, if no row holds two."""
        raise NotImplementedError

    def held(self, places: np.ndarray) -> list[np.ndarray]:
        """Nothing: the index finds every document by its number."""
        return []

    def take(self, chosen: np.ndarray) -> np.ndarray:
        """The rows with these numbers, ``(rows, row_tokens)`` int64, padded with :data:`PADDING`."""
        rows = np.full((len(chosen), self.row_tokens), PADDING, dtype=np.int64)
        for row, number in zip(rows, chosen.tolist(), strict=True):
            filled = 0
            for document, begin, length in self.pieces(number):
                row[filled : filled + length] = self.index.tokens(document, begin, begin + length)
                filled += length
        return rows


class ConcatenatedWindow(IndexedWindow):
    """Rows cut out of one stream of tokens."""

    @property
    def _end_token(self) -> int:
        if self.after is None:
            return self.index.total
        return self.index.before(self.end - 1) + self.after.offset

    @property
    def read(self) -> int:
        """Tokens that the window stands for."""
        return max(0, self._end_token - self.start)

    @property
    def count(self) -> int:
        """Rows of the window; the last, incomplete one of a pass is dropped."""
        return self.read // self.row_tokens

    @property
    def dropped(self) -> int:
        """Tokens at the end of the pass that fill no row."""
        return self.read - self.count * self.row_tokens

    def pieces(self, row: int) -> list[Piece]:
        """The documents that the row runs through."""
        place, pieces = self.start + row * self.row_tokens, []
        end = place + self.row_tokens
        document = self.index.holding(place)
        while place < end:
            begin = place - self.index.before(document)
            length = min(end, self.index.before(document + 1)) - place
            if length:
                pieces.append((document, begin, length))
            place, document = place + length, document + 1
        return pieces


class BestFitWindow(IndexedWindow):
    """Rows of whole documents."""

    @cached_property
    def _rows(self) -> BestFitRows:
        stored = self.index.fitted
        found = None if stored is None or stored.row_tokens != self.row_tokens else stored.window(self.first, self.read)
        return best_fit(self.index.lengths(self.first, self.end), self.row_tokens) if found is None else found

    @property
    def count(self) -> int:
        """Rows of the window."""
        return self._rows.count

    def pieces(self, row: int) -> list[Piece]:
        """The documents of the row."""
        return [(self.first + document, begin, length) for document, begin, length in self._rows.pieces(row)]


class WholeDocumentsWindow(IndexedWindow):
    """Documents in rows of their own."""

    @cached_property
    def _lengths(self) -> np.ndarray:
        return self.index.lengths(self.first, self.end)

    @property
    def count(self) -> int:
        """Rows of the window."""
        return int(rows_of_lengths(self._lengths, self.row_tokens - 1).sum())

    @property
    def repeated(self) -> int:
        """Tokens in the rows beyond those that were read: one per row."""
        return self.count

    @cached_property
    def whole_documents(self) -> np.ndarray:
        """Number, tokens and hash of its documents, ``(3, documents)`` int64."""
        numbers, hashes = self.index.numbers[self.first : self.end], self.index.hashes(self.first, self.end)
        table = table_of(numbers, self._lengths, hashes)
        return table if self._lengths.all() else table[:, self._lengths > 0]


class IndexedWindows:
    """The windows of one prepared source, from any window on; none is read to find the next.

    Args:
        source: The source, for messages.
        index: Its documents.
        packing: Packs them into rows.
        row_tokens: Tokens per row: ``block_size + 1``.
        most_rows: Rows per window.
    """

    def __init__(
        self, source: SourceBase, index: DocumentIndex, packing: Packing, row_tokens: int, most_rows: int
    ) -> None:
        self.source = source
        self.index = index
        self.packing = packing
        self.row_tokens = row_tokens
        self.most_rows = most_rows

    def read(self, window: Window) -> tuple[IndexedWindow, Window | None]:
        """The rows of ``window``, and the next window or None at the end of the pass; sets the window's digest.

        Raises:
            WorkError: The documents are not those that the window was made of.
        """
        first = self.index.at(window.document)
        start = self.index.before(first) + window.offset
        found = self._window(first, start)
        window.check(self.index.digest(first, found.end), self.source)
        if found.after is None:
            return found, None
        position, before = found.after, window.tokens_before + found.read
        return found, Window(window.index + 1, position.document, position.offset, before)

    def documents(self, lengths: Mapping[int, int]) -> dict[int, FoundAgain]:
        """The documents with these numbers, cut to these lengths; those that do not exist are left out."""
        places = {number: self.index.at(number) for number in lengths}
        found = {}
        for number, place in places.items():
            if place < self.index.documents and self.index.numbers[place] == number:
                length = min(lengths[number], int(self.index.lengths(place, place + 1)[0]))
                found[number] = FoundAgain(length, self.index.hash(place, length), None)
        return found

    def tokens(self, number: int, length: int) -> np.ndarray:
        """The first tokens of the document with this number, as a view of the memory-mapped part."""
        return self.index.tokens(self.index.at(number), 0, length)

    def _window(self, first: int, start: int) -> IndexedWindow:
        index, ended = self.index, self.index.documents
        make = partial(_KINDS[type(self.packing)], index, self.row_tokens, first)
        if isinstance(self.packing, WholeDocuments):
            lengths = index.lengths(first, min(first + self.most_rows, ended))
            rows = np.cumsum(rows_of_lengths(lengths, self.row_tokens - 1))
            last = first + int(np.searchsorted(rows, self.most_rows))
            if last >= first + len(rows):
                return make(ended, start, None)
        else:
            wanted_end = start + self.most_rows * self.row_tokens
            if wanted_end > index.total:
                return make(ended, start, None)
            last = index.holding(wanted_end - 1)
            if isinstance(self.packing, Concatenate):
                return make(last + 1, start, Position(int(index.numbers[last]), wanted_end - index.before(last)))
        return make(last + 1, start, Position(int(index.numbers[last]) + 1, 0))


_KINDS: dict[type[Packing], type[IndexedWindow]] = {
    Concatenate: ConcatenatedWindow,
    BestFit: BestFitWindow,
    WholeDocuments: WholeDocumentsWindow,
}


def fit_all(source: SourceBase, index: DocumentIndex, row_tokens: int, most_rows: int) -> np.ndarray:
    """The rows of all ``best_fit`` windows of a source, to be stored (:mod:`~lightning_gpt.data.fitted`)."""
    windows = IndexedWindows(source, index, PACKINGS["best_fit"], row_tokens, most_rows)
    found = []
    following: Window | None = Window()
    while following is not None:
        packed, following = windows.read(following)
        rows = best_fit(index.lengths(packed.first, packed.end), row_tokens)
        found.append((packed.first, packed.read, rows))
    return fitted_array(found, row_tokens)
