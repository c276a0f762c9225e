"""From documents to the endless, exactly repeatable sequence of training rows.

For each source, the documents of the training split are tokenised in order, each followed by ``<|endoftext|>``, and
packed into rows of ``block_size + 1`` tokens (:mod:`~lightning_gpt.data.packing`). Reading a source once is a *pass*.
Within a pass, each window of ``shuffle_window`` rows is shuffled with a seed derived from (seed, source, pass, window).
A mix of sources takes its rows in proportion to their weights. Row n is therefore a pure function of the configuration
and the seed, and a *cursor*, a small JSON object, records where to resume: a window can always be read again from the
document it starts in, whereas the content of a shuffle buffer is lost.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from lightning_gpt.data.dhondt import next_sources, rows_of_each
from lightning_gpt.data.divide import texts_of
from lightning_gpt.data.indexed import IndexedWindows
from lightning_gpt.data.mark import Cursor, Mark
from lightning_gpt.data.packing import PACKINGS, Packed, Packing, PackingName, Position, WindowRows
from lightning_gpt.data.prepared import PreparedSource
from lightning_gpt.data.sources.base import SourceBase, require_distinct_names
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
        return ((number, self.tokenizer.encode_document(text)) for number, text in texts)


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
        if not self._repeat or self._item is None:
            self._item = next(self._documents)
        self._repeat = False
        if len(self._item[1]):  # a limit may leave none of a document
            self.hashes.append(hash_of(self._item[1]))
        return self._item


class SourceRows:
    """The endless rows of one source, shuffled within each window.

    Args:
        windows: Reads the windows of the source, or finds them in its index.
        seed: Seed of the order.
        state: Where to resume, from :meth:`state`; the start when omitted.
    """

    used_of_window = "rows_used_of_window"  # the key in the state for the position within a window's order

    def __init__(self, windows: Windows | IndexedWindows, seed: int, state: Cursor | None = None) -> None:
        self.windows = windows
        self.seed = seed
        self.pass_number = state["pass"] if state else 0
        self.window = Window(**state["window"]) if state else Window()
        self.used = state[self.used_of_window] if state else 0
        self.taken = state["rows_taken"] if state else 0
        self._packed: WindowRows | None = None  # the open window
        self._order = np.empty(0, dtype=np.int64)  # the order in which training uses its parts
        self._after: Window | None = None

    @property
    def source(self) -> SourceBase:
        """The source of the rows."""
        return self.windows.source

    def state(self) -> Cursor:
        """The position of the next row, as plain values."""
        return {
            "pass": self.pass_number,
            "window": vars(self.window).copy(),
            self.used_of_window: self.used,
            "rows_taken": self.taken,
        }

    def take(self, count: int) -> np.ndarray:
        """The next ``count`` rows, ``(count, row_tokens)`` int64, padded with ``PADDING``.

        Raises:
            WorkError: The source is shorter than a row, has reached its ``max_passes``, or has changed.
        """
        rows, filled = np.empty((count, self.windows.row_tokens), dtype=np.int64), 0
        for packed, chosen in self._next(count):
            rows[filled : filled + len(chosen)] = packed.take(chosen)
            filled += len(chosen)
        return rows

    def skip(self, count: int) -> None:
        """Pass over the next ``count`` rows. Of a prepared source nothing is read."""
        for _ in self._next(count):
            pass

    def _next(self, count: int) -> Iterator[tuple[WindowRows, np.ndarray]]:
        """The next ``count`` rows: windows, and the numbers of the rows that are next in each."""
        while count:
            packed = self._open_window()
            chosen = self._order[self.used : self.used + count]
            self.used += len(chosen)
            self.taken += len(chosen)
            count -= len(chosen)
            yield packed, chosen

    def _parts(self, packed: WindowRows) -> int:
        """The number of units to shuffle in a window: its rows."""
        return packed.count

    def _open_window(self) -> WindowRows:
        """The window that contains the next row."""
        packed = self._packed or self._read_window()
        while self.used >= len(self._order):
            packed = self._next_window(packed)
        return packed

    def _next_window(self, this: WindowRows) -> WindowRows:
        if self._after is not None:
            self.window = self._after
        elif self.window.index == 0 and this.count == 0:
            raise WorkError(
                f"source {self.source.name!r} has less than one block of training text "
                f"({self.windows.row_tokens} tokens): add text, or lower block_size"
            )
        else:
            self._begin_pass(self.pass_number + 1)
        self.used = 0
        return self._read_window()

    def _begin_pass(self, number: int) -> None:
        most = self.source.max_passes
        if most is not None and number >= most:
            raise WorkError(
                f"source {self.source.name!r} is used up: all its rows were trained on {number} times, and max_passes "
                f"is {most}; allow more passes, lower its weight, or train for fewer steps"
            )
        self.pass_number, self.window = number, Window()

    def _read_window(self) -> WindowRows:
        packed: WindowRows
        packed, self._after = self.windows.read(self.window)
        self._packed, self._order = packed, self._shuffled(self._parts(packed))
        return packed

    def _shuffled(self, parts: int) -> np.ndarray:
        key = f"{self.seed}/{self.source.name}/{self.pass_number}/{self.window.index}"
        seed = int.from_bytes(hashlib.blake2b(key.encode(), digest_size=4).digest(), "big")
        # RandomState: numpy guarantees that its streams never change (NEP 19); those of Generator may
        return np.random.RandomState(seed).permutation(parts)


class RowSequence:
    """The endless rows of a mix of sources.

    :mod:`~lightning_gpt.data.dhondt` says which source gives which row. If the weights are the sources' row counts,
    each run of that many rows is exactly one pass over all sources.

    Args:
        sources: One :class:`SourceRows` per source.
        weights: Their relative shares.
        rows: Rows already taken, from a cursor.
    """

    def __init__(self, sources: Sequence[SourceRows], weights: Sequence[float], rows: int = 0) -> None:
        self.sources = sources
        self.weights = weights
        self.rows = rows

    def take(self, count: int) -> np.ndarray:
        """The next ``count`` rows, ``(count, block_size + 1)`` int64, padded with ``PADDING``."""
        return self.take_share(count, 0, count)

    def take_share(self, count: int, begin: int, end: int) -> np.ndarray:
        """Pass over the next ``count`` rows; returns those from number ``begin`` to ``end - 1`` of them.

        Of prepared sources only these are read.
        """
        self._skip(begin)
        of_source = next_sources([source.taken for source in self.sources], self.weights, end - begin)
        rows = np.empty((end - begin, self.sources[0].windows.row_tokens), dtype=np.int64)
        for number, source in enumerate(self.sources):
            places = np.flatnonzero(of_source == number)
            rows[places] = source.take(len(places))
        self._skip(count - end)
        self.rows += count
        return rows

    def skip(self, count: int) -> None:
        """Pass over the next ``count`` rows."""
        self._skip(count)
        self.rows += count

    def _skip(self, count: int) -> None:
        taken = [source.taken for source in self.sources]
        for source, rows in zip(self.sources, rows_of_each(taken, self.weights, count), strict=True):
            source.skip(rows)

    def mark(self) -> Mark:
        """The position of the next row."""
        return Mark(self._position())

    def cursor(self) -> Cursor:
        """The position of the next row, as JSON values."""
        return self.mark().cursor()

    def _position(self) -> Cursor:
        return {"rows": self.rows, "sources": {source.source.name: source.state() for source in self.sources}}


@dataclass(frozen=True)
class Stream:
    """Everything that determines the training rows; :meth:`open` reads them."""

    readers: tuple[Reader, ...]
    weights: tuple[float, ...]
    block_size: int
    shuffle_window: int
    seed: int
    packing: PackingName = "concatenate"

    def __post_init__(self) -> None:
        require_distinct_names(reader.source for reader in self.readers)

    @property
    def end_of_text(self) -> int:
        """The id of ``<|endoftext|>``."""
        return self.readers[0].tokenizer.end_of_text

    def windows(self, reader: Reader) -> Windows | IndexedWindows:
        """The windows of the reader's source."""
        return windows_of(reader, PACKINGS[self.packing], self.block_size + 1, self.shuffle_window)

    def open(self, cursor: Cursor | None = None) -> RowSequence:
        """The rows from ``cursor`` on; from the start when omitted."""
        states = cursor["sources"] if cursor else {}
        sources = [
            SourceRows(self.windows(reader), self.seed, states.get(reader.source.name)) for reader in self.readers
        ]
        return RowSequence(sources, self.weights, cursor["rows"] if cursor else 0)

    def identity(self) -> dict[str, Any]:
        """What must be the same when a cursor is saved and when it is used, as plain values."""
        first = self.readers[0]
        return {
            "sources": [reader.source.name for reader in self.readers],
            "filters": [reader.source.filter_identity for reader in self.readers],
            "weights (rows where none are given)": [float(weight) for weight in self.weights],
            "tokenizer": first.tokenizer.fingerprint,
            "split": [reader.split.rule for reader in self.readers],
            "val_share": first.split.val,
            "test_share": first.split.test,
            "block_size": self.block_size,
            "shuffle_window": self.shuffle_window,
            "packing": self.packing,
            "seed": self.seed,
        }


def evaluation_documents(readers: Sequence[Reader], limit: int) -> list[np.ndarray]:
    """The tokens of the first documents of a validation or test split, ``limit`` tokens at most.

    Each source (one reader per source) gets an equal share of the limit; what it leaves unused goes to the later ones.
    The last document of a source may be cut.
    """
    parts: list[np.ndarray] = []
    left = limit
    for position, reader in enumerate(readers):
        share = left // (len(readers) - position)
        taken = [tokens for _, tokens in reader.tokens(limit=share)]
        left -= sum(map(len, taken))
        parts += taken
    return parts
