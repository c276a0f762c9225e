"""From documents to the endless, exactly repeatable sequence of training rows.

For each source, the documents of the training split are tokenised in order, each closed by ``<|endoftext|>``, and
cut into rows of ``block_size + 1`` tokens; once through is a *pass*, and what is left at its end and fills no row
is dropped. Within a pass, windows of ``shuffle_window`` rows are each put in an order drawn from (seed, source,
pass, window). A mix takes its rows from the sources in proportion to their weights. So row number n is a pure
function of the configuration and the seed, and a *cursor*, a small JSON object, says where to go on: a window can
always be read again from the document that it starts in, which a shuffle buffer that drops its content cannot.
"""

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lightning_gpt.data.sources import Source
from lightning_gpt.data.split import Split, SplitName
from lightning_gpt.data.tokenizer import Tokenizer
from lightning_gpt.errors import CallError, WorkError

Cursor = dict[str, Any]


@dataclass(frozen=True)
class Reader:
    """The documents of one split of one source, as tokens."""

    source: Source
    split: Split
    part: SplitName
    tokenizer: Tokenizer

    def texts(self, start: int = 0) -> Iterator[tuple[int, str]]:
        """Number and text of the split's documents, from document ``start`` of the source on."""
        for number, document in enumerate(self.source.documents(start), start):
            if document.text and self.split.of(document.text) == self.part:
                yield number, document.text

    def tokens(self, start: int = 0) -> Iterator[tuple[int, np.ndarray]]:
        """Number and tokens of the split's documents, each closed by ``<|endoftext|>``."""
        for number, text in self.texts(start):
            yield number, np.append(self.tokenizer.encode(text), np.uint32(self.tokenizer.end_of_text))


@dataclass(frozen=True)
class Count:
    """What one pass over a :class:`Reader` holds."""

    documents: int
    tokens: int
    rows: int
    token_counts: np.ndarray
    """How often each token id occurs, ``(vocab_size,)``."""


def count(reader: Reader, block_size: int) -> Count:
    """Read a source through once, as far as training will, to know its size."""
    documents, total, token_counts = 0, 0, np.zeros(reader.tokenizer.vocab_size, dtype=np.int64)
    limit = reader.source.max_tokens
    for _, tokens in reader.tokens():
        documents += 1
        tokens = tokens if limit is None else tokens[: limit - total]
        total += len(tokens)
        token_counts += np.bincount(tokens, minlength=len(token_counts))
        if total == limit:
            break
    return Count(documents, total, total // (block_size + 1), token_counts)


@dataclass
class _Window:
    """Where a window of rows starts in its source: ``offset`` tokens into document ``document``."""

    index: int = 0
    document: int = 0
    offset: int = 0


class SourceRows:
    """The endless rows of one source.

    Args:
        reader: The documents.
        row_tokens: Tokens in a row: ``block_size + 1``.
        shuffle_window: Rows that are shuffled together.
        seed: Of the order.
        state: Where to go on, from :meth:`state`; the start when omitted.
    """

    def __init__(
        self, reader: Reader, row_tokens: int, shuffle_window: int, seed: int, state: Cursor | None = None
    ) -> None:
        self.reader = reader
        self.row_tokens = row_tokens
        self.shuffle_window = shuffle_window
        self.seed = seed
        self.pass_number = state["pass"] if state else 0
        self.window = _Window(**state["window"]) if state else _Window()
        self.used = state["rows_used_of_window"] if state else 0
        self.taken = state["rows_taken"] if state else 0
        self._rows: np.ndarray | None = None  # (rows, row_tokens) of the open window, in training order
        self._after: _Window | None = None  # where the next window starts; None at the end of a pass

    def state(self) -> Cursor:
        """Where the next row comes from, as plain values."""
        return {
            "pass": self.pass_number,
            "window": vars(self.window).copy(),
            "rows_used_of_window": self.used,
            "rows_taken": self.taken,
        }

    def take(self) -> np.ndarray:
        """The next row, ``(row_tokens,)``."""
        rows = self._read_window() if self._rows is None else self._rows
        while self.used >= len(rows):
            rows = self._next_window(len(rows))
        row: np.ndarray = rows[self.used]
        self.used += 1
        self.taken += 1
        return row

    def _next_window(self, rows_of_this: int) -> np.ndarray:
        if self._after is not None:
            self.window = self._after
        elif self.window == _Window() and rows_of_this == 0:
            raise WorkError(
                f"source {self.reader.source.name!r} holds less than one block of training text "
                f"({self.row_tokens} tokens): add text, or lower block_size"
            )
        else:
            self.pass_number += 1
            self.window = _Window()
        self.used = 0
        return self._read_window()

    def _read_window(self) -> np.ndarray:
        start, parts, have = self.window, [], 0
        rows_wanted, last = self.shuffle_window, False
        if self.reader.source.max_tokens is not None:
            left = self.reader.source.max_tokens // self.row_tokens - start.index * self.shuffle_window
            rows_wanted, last = min(rows_wanted, left), left <= rows_wanted
        wanted = rows_wanted * self.row_tokens
        self._after = None
        for number, tokens in self.reader.tokens(start.document):
            if number == start.document:
                tokens = tokens[start.offset :]
            parts.append(tokens)
            have += len(tokens)
            if have >= wanted:
                read = (start.offset if number == start.document else 0) + len(tokens) - (have - wanted)
                self._after = None if last else _Window(start.index + 1, number, read)
                break
        count = min(have // self.row_tokens, rows_wanted)
        small = self.reader.tokenizer.vocab_size <= 2**16
        stream = np.concatenate(parts or [np.empty(0)]).astype(np.uint16 if small else np.int32)
        rows = stream[: count * self.row_tokens].reshape(count, self.row_tokens)
        self._rows = rows[self._order(count)]
        return self._rows

    def _order(self, rows: int) -> np.ndarray:
        key = f"{self.seed}/{self.reader.source.name}/{self.pass_number}/{self.window.index}"
        seed = int.from_bytes(hashlib.blake2b(key.encode(), digest_size=4).digest(), "big")
        # RandomState: numpy promises never to change its streams (NEP 19); those of Generator may change
        return np.random.RandomState(seed).permutation(rows)


class RowSequence:
    """The endless rows of a mix of sources.

    Row by row, the source is taken whose share lags most: the one with the smallest ``(taken + 1) / weight``
    (D'Hondt's rule), which keeps every share within one row of its due and, with weights equal to the sources'
    rows, makes each run of that many rows exactly one pass over all of them.

    Args:
        sources: One :class:`SourceRows` each.
        weights: Their shares, in any unit.
        rows: How many rows were taken before, from a cursor.
    """

    def __init__(self, sources: Sequence[SourceRows], weights: Sequence[float], rows: int = 0) -> None:
        self.sources = sources
        self.weights = weights
        self.rows = rows

    def take(self, count: int) -> np.ndarray:
        """The next ``count`` rows, ``(count, block_size + 1)`` int64."""
        rows = []
        for _ in range(count):
            lags = [(source.taken + 1) / weight for source, weight in zip(self.sources, self.weights, strict=True)]
            rows.append(self.sources[lags.index(min(lags))].take())
        self.rows += count
        return np.stack(rows).astype(np.int64)

    def cursor(self) -> Cursor:
        """Where the next row comes from: JSON values only, a few hundred bytes a source."""
        return {"rows": self.rows, "sources": {s.reader.source.name: s.state() for s in self.sources}}


@dataclass(frozen=True)
class Stream:
    """All that the training rows are a function of; :meth:`open` gives the rows themselves."""

    readers: tuple[Reader, ...]
    weights: tuple[float, ...]
    block_size: int
    shuffle_window: int
    seed: int

    def __post_init__(self) -> None:
        names = Counter(reader.source.name for reader in self.readers)
        twice = [name for name, uses in names.items() if uses > 1]
        if twice:
            raise CallError(f"two sources are named {twice[0]!r}; give each its own name")

    def open(self, cursor: Cursor | None = None) -> RowSequence:
        """The rows from ``cursor`` on."""
        states = cursor["sources"] if cursor else {}
        sources = [
            SourceRows(reader, self.block_size + 1, self.shuffle_window, self.seed, states.get(reader.source.name))
            for reader in self.readers
        ]
        return RowSequence(sources, self.weights, cursor["rows"] if cursor else 0)

    def identity(self) -> dict[str, Any]:
        """What must not change between a cursor's making and its use, as plain values."""
        first = self.readers[0]
        return {
            "sources": [reader.source.name for reader in self.readers],
            "weights": [float(weight) for weight in self.weights],
            "tokenizer": first.tokenizer.fingerprint,
            "val_share": first.split.val,
            "test_share": first.split.test,
            "block_size": self.block_size,
            "shuffle_window": self.shuffle_window,
            "seed": self.seed,
        }


def evaluation_tokens(readers: Sequence[Reader], limit: int) -> np.ndarray:
    """The first ``limit`` tokens of a validation or test split, the sources' shares of the limit equal: ``(tokens,)``.

    What a small source does not use of its share goes to those after it.
    """
    parts: list[np.ndarray] = []
    left = limit
    for position, reader in enumerate(readers):
        share = left // (len(readers) - position)
        for _, tokens in reader.tokens():
            parts.append(tokens[:share])
            share -= len(parts[-1])
            left -= len(parts[-1])
            if share <= 0:
                break
    return np.concatenate(parts or [np.empty(0)]).astype(np.int64)
