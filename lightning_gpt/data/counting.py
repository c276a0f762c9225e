"""What one pass over a source holds: documents, tokens and rows."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from lightning_gpt.data.indexed import IndexedWindows
from lightning_gpt.data.packing import CONCATENATE, Packing
from lightning_gpt.data.prepared import PreparedSource
from lightning_gpt.data.reader import Reader, Windows, windows_of
from lightning_gpt.data.sources.base import SourceBase
from lightning_gpt.data.window import Window
from lightning_gpt.errors import CallError


@dataclass(frozen=True)
class Count:
    """The contents of one pass over a :class:`Reader`, and the result of packing it."""

    documents: int
    tokens: int
    rows: int
    dropped: int
    """Tokens that are not in any row."""
    padding: int
    """Places in rows that hold no token."""
    token_counts: np.ndarray
    """How often each token id occurs, ``(vocab_size,)`` int64."""

    def described(self, row_tokens: int) -> str:
        """The counts in words, for rows of ``row_tokens``."""
        places = self.rows * row_tokens
        padded = f" ({self.padding / places:.1%} padding)" if self.padding and places else ""
        dropped = f", {self.dropped:,} trailing tokens dropped (incomplete row)" if self.dropped else ""
        return (
            f"{self.documents:,} training documents, {self.tokens:,} tokens, "
            f"{self.rows:,} rows of {row_tokens}{padded}{dropped}"
        )


def count(reader: Reader, block_size: int, packing: Packing = CONCATENATE, most_rows: int = 16384) -> Count:
    """What training uses of a source, packed into windows of ``most_rows`` rows of ``block_size + 1``.

    A prepared source is not read: its index says it all.
    """
    if isinstance(reader.source, PreparedSource) and reader.part == "train":
        index = reader.source.training
        windows = windows_of(reader, packing, block_size + 1, most_rows)
        return Count(index.documents, index.total, *_packed(windows), index.token_counts)
    documents, token_counts = 0, np.zeros(reader.tokenizer.vocab_size, dtype=np.int64)

    class Counted(Reader):
        """Counts what it reads. Each document is read once, because the windows are consecutive."""

        def tokens(self, start: int = 0, limit: int | None = None) -> Iterator[tuple[int, np.ndarray]]:
            nonlocal documents
            for number, tokens in super().tokens(start, limit):
                documents += 1
                np.add.at(token_counts, tokens, 1)
                yield number, tokens

    counted = Counted(reader.source, reader.split, reader.part, reader.tokenizer)
    rows = _packed(Windows(counted, packing, block_size + 1, most_rows))
    return Count(documents, int(token_counts.sum()), *rows, token_counts)


def _packed(windows: Windows | IndexedWindows) -> tuple[int, int, int]:
    """Rows, dropped tokens and padding of a pass."""
    window: Window | None = Window()
    rows = dropped = padding = 0
    while window is not None:
        packed, window = windows.read(window)
        rows += packed.count
        dropped += packed.dropped
        padding += packed.padding
    return rows, dropped, padding


def rows_at_most(source: SourceBase, block_size: int) -> int | None:
    """The rows that ``max_tokens`` lets a source have; None without it.

    Raises:
        CallError: It allows less than one row.
    """
    if source.max_tokens is None:
        return None
    if source.max_tokens <= block_size:
        raise CallError(
            f"source {source.name!r}: max_tokens is {source.max_tokens}, less than one block: block_size {block_size} "
            f"needs {block_size + 1:,}"
        )
    return source.max_tokens // (block_size + 1)
