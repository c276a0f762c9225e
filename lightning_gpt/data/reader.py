"""The documents of a source as tokens, and the windows of rows that they are packed into."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np

from lightning_gpt.data.ahead import end_if_in_vain
from lightning_gpt.data.divide import texts_of
from lightning_gpt.data.indexed import IndexedWindows
from lightning_gpt.data.packing import Packed, Packing, Position
from lightning_gpt.data.prepared import PreparedSource
from lightning_gpt.data.sources.base import SourceBase
from lightning_gpt.data.split import Split, SplitName
from lightning_gpt.data.tokenizer import Tokenizer
from lightning_gpt.data.window import FoundAgain, Window, digest_of, hash_of
from lightning_gpt.errors import WorkError


@dataclass(frozen=True)
class Reader:
    """Reads the documents of one split of one source as tokens."""

    source: SourceBase
    split: Split
    part: SplitName
    tokenizer: Tokenizer

    def tokens(self, start: int = 0, limit: int | None = None) -> Iterator[tuple[int, np.ndarray]]:
        """Number and tokens of the split's documents, each ending with ``<|endoftext|>``.

        Args:
            start: Number of the first document.
            limit: Total number of tokens; the document that exceeds it is cut.
        """
        for number, tokens in self._documents(start):
            yield number, tokens if limit is None else tokens[:limit]
            if limit is not None:
                limit -= len(tokens)
                if limit <= 0:
                    return

    def _documents(self, start: int) -> Iterator[tuple[int, np.ndarray]]:
        if isinstance(self.source, PreparedSource):
            return ((number, tokens) for number, part, tokens in self.source.tokens(start) if part == self.part)
        texts = texts_of(self.source, self.split, self.part, start)
        return ((number, self._encoded(number, text)) for number, text in texts)

    def _encoded(self, number: int, text: str) -> np.ndarray:
        try:
            return self.tokenizer.encode_document(text)
        except WorkError as error:
            raise WorkError(f"source {self.source.name!r}, document {number + 1:,}: {error}") from None


class Windows:
    """Reads the windows of one source, in document order, starting from any window.

    Consecutive windows tokenise each document once. A jump to another window tokenises from its first document on.

    Args:
        reader: Reads the documents.
        packing: Packs them into rows.
        row_tokens: Tokens per row: ``block_size + 1``.
        most_rows: Rows per window.
    """

    def __init__(self, reader: Reader, packing: Packing, row_tokens: int, most_rows: int) -> None:
        self.reader = reader
        self.source = reader.source
        self.packing = packing
        self.row_tokens = row_tokens
        self.most_rows = most_rows
        self._feed: _Feed | None = None
        self._next = Window()

    def read(self, window: Window) -> tuple[Packed, Window | None]:
        """The rows of ``window``, and the next window or None at the end of the pass; checks the window's digest."""
        if self._feed is None or window != self._next:
            limit = self.reader.source.max_tokens
            left = None if limit is None else limit - window.tokens_before + window.offset
            self._feed = _Feed(self.reader.tokens(window.document, left))
        self._feed.hashes.clear()
        start = Position(window.document, window.offset)
        packed = self.packing.pack(self._feed, start, self.row_tokens, self.most_rows)
        window.check(digest_of(np.array(self._feed.hashes, dtype=np.uint64)), self.source)
        if packed.after is None:
            self._feed = None
            return packed, None
        if packed.after.document == self._feed.last:
            self._feed.again()
        before = window.tokens_before + packed.read
        self._next = Window(window.index + 1, packed.after.document, packed.after.offset, before)
        return packed, replace(self._next)

    def documents(self, lengths: Mapping[int, int]) -> dict[int, FoundAgain]:
        """The documents with these numbers, cut to these lengths; those that do not exist are left out.

        They are found by reading all documents from the first of them to the last.
        """
        found: dict[int, FoundAgain] = {}
        for number, tokens in self.reader.tokens(min(lengths)) if lengths else ():
            if number in lengths:
                cut = tokens[: lengths[number]]
                found[number] = FoundAgain(len(cut), hash_of(cut), np.array(cut))
            if len(found) == len(lengths):
                break
        return found


def windows_of(reader: Reader, packing: Packing, row_tokens: int, most_rows: int) -> Windows | IndexedWindows:
    """The windows of a source: found in its index if it is prepared and read for training, else by reading it."""
    if isinstance(reader.source, PreparedSource) and reader.part == "train":
        return IndexedWindows(reader.source, reader.source.training, packing, row_tokens, most_rows)
    return Windows(reader, packing, row_tokens, most_rows)


class _Feed(Iterator[tuple[int, np.ndarray]]):
    """An iterator over documents that can repeat the last one, and keeps the hashes of those that it yields."""

    def __init__(self, documents: Iterator[tuple[int, np.ndarray]]) -> None:
        self.hashes: list[int] = []
        self._documents = documents
        self._item: tuple[int, np.ndarray] | None = None
        self._repeat = False

    @property
    def last(self) -> int | None:
        """Number of the last document."""
        return None if self._item is None else self._item[0]

    def again(self) -> None:
        """Yield the last document again."""
        self._repeat = True

    def __next__(self) -> tuple[int, np.ndarray]:
        end_if_in_vain()
        if not self._repeat or self._item is None:
            self._item = next(self._documents)
        self._repeat = False
        if len(self._item[1]):  # a limit may leave none of a document
            self.hashes.append(hash_of(self._item[1]))
        return self._item
