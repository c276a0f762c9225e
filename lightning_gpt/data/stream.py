"""From documents to the endless, exactly repeatable sequence of training rows.

For each source, the documents of the training split are tokenised in order, each followed by ``<|endoftext|>``, and
packed into rows of ``block_size + 1`` tokens (:mod:`~lightning_gpt.data.packing`). Reading a source once is a *pass*.
Within a pass, each window of ``shuffle_window`` rows is shuffled with a seed derived from (seed, source, pass, window).
A mix of sources takes its rows in proportion to their weights. Row n is therefore a pure function of the configuration
and the seed, and a *cursor*, a small JSON object, records where to resume: a window can always be read again from the
document it starts in, whereas the content of a shuffle buffer is lost.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from lightning_gpt.data.ahead import Ahead
from lightning_gpt.data.dhondt import next_sources, rows_of_each
from lightning_gpt.data.indexed import IndexedWindows
from lightning_gpt.data.mark import Cursor, Mark
from lightning_gpt.data.packing import PACKINGS, PackingName, WindowRows
from lightning_gpt.data.reader import Reader, Windows, windows_of
from lightning_gpt.data.sources.base import SourceBase, require_distinct_names
from lightning_gpt.data.window import Window
from lightning_gpt.errors import WorkError


class _Opened(NamedTuple):
    """A window that can be used."""

    pass_number: int
    window: Window
    packed: WindowRows
    order: np.ndarray
    """The order in which training uses its parts, ``(parts,)`` int64."""
    after: Window | None
    """The next window; None at the end of the pass."""


class SourceRows:
    """The endless rows of one source, shuffled within each window.

    Once half of a window is used, a thread begins to make the next one.

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
        self._order = np.empty(0, dtype=np.int64)
        self._after: Window | None = None
        self._ahead: Ahead[_Opened] | None = None

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
        self._look_ahead()

    @staticmethod
    def _parts(packed: WindowRows) -> int:
        """The number of units to shuffle in a window: its rows."""
        return packed.count

    def _open_window(self) -> WindowRows:
        """The window that contains the next row."""
        packed = self._packed or self._enter(self._making(self.pass_number, self.window)())
        while self.used >= len(self._order):
            packed = self._enter(self._next_window(packed))
            self.used = 0
        return packed

    def _next_window(self, this: WindowRows) -> _Opened:
        if self._after is None and self.window.index == 0 and this.count == 0:
            raise WorkError(
                f"source {self.source.name!r} has less than one block of training text "
                f"({self.windows.row_tokens} tokens): add text, or lower block_size"
            )
        if self._is_last:
            raise WorkError(
                f"source {self.source.name!r} is used up: all its rows were trained on {self.pass_number + 1} times, "
                f"and max_passes is {self.source.max_passes}; allow more passes, lower its weight, or train for fewer "
                f"steps"
            )
        ahead, self._ahead = self._ahead, None
        return self._making(*self._following)() if ahead is None else ahead.take()

    @property
    def _is_last(self) -> bool:
        """Whether no window may follow the open one."""
        most = self.source.max_passes
        return self._after is None and most is not None and self.pass_number + 1 >= most

    @property
    def _following(self) -> tuple[int, Window]:
        """The pass and the window after the open one."""
        return (self.pass_number + 1, Window()) if self._after is None else (self.pass_number, self._after)

    def _look_ahead(self) -> None:
        """Begin to make the next window if half of the open one is used: a short run never needs it."""
        is_time = 0 < len(self._order) <= 2 * self.used
        if is_time and self._ahead is None and not self._is_last:
            self._ahead = Ahead(self._making(*self._following))

    def _making(self, pass_number: int, window: Window) -> Callable[[], _Opened]:
        """What makes a window; it holds nothing of this object, which a thread would keep alive."""
        return partial(_opened, self.windows, self._parts, f"{self.seed}/{self.source.name}", pass_number, window)

    def _enter(self, opened: _Opened) -> WindowRows:
        self.pass_number, self.window, self._packed, self._order, self._after = opened
        return opened.packed


def _opened(
    windows: Windows | IndexedWindows,
    parts: Callable[[WindowRows], int],
    key: str,
    pass_number: int,
    window: Window,
) -> _Opened:
    """Read a window and draw its order: ``key``, pass and window are the seed."""
    packed: WindowRows
    packed, after = windows.read(window)
    key = f"{key}/{pass_number}/{window.index}"
    seed = int.from_bytes(hashlib.blake2b(key.encode(), digest_size=4).digest(), "big")
    # RandomState: numpy guarantees that its streams never change (NEP 19); those of Generator may
    return _Opened(pass_number, window, packed, np.random.RandomState(seed).permutation(parts(packed)), after)


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
            "max_tokens": {
                reader.source.name: reader.source.max_tokens
                for reader in self.readers
                if reader.source.max_tokens is not None
            }
            or None,
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
