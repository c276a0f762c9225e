"""Documents side by side: row r of an optimizer step continues where row r of the previous step stopped.

A *lane* holds one document and contributes one row of it to each optimizer step. When the document ends, the lane takes
the next document. Documents come in a fixed order: each window of documents of a source is shuffled with a seed derived
from (seed, source, pass, window). There is one lane per row of an optimizer step, however the rows are shared among
processes and micro-batches: micro-batch m of a step has the m-th ``batch_size × processes`` lanes, and process r the
r-th ``batch_size`` of those. A model can therefore keep its memory of a document under the number of its lane.
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from heapq import heapreplace
from typing import Any

import numpy as np
from xxhash import xxh3_64_hexdigest

from lightning_gpt.data.packing import WHOLE_DOCUMENTS, Packed, Position
from lightning_gpt.data.stream import PADDING, Cursor, RowSequence, SourceRows, Stream, Windows
from lightning_gpt.errors import WorkError


@dataclass
class Lane:
    """The document that one row of every step reads."""

    source: int
    """Index of its source."""
    document: int
    """Its number in the source."""
    rows: np.ndarray
    """All rows of the document, ``(rows, row_tokens)``."""
    lengths: np.ndarray
    """Tokens in each row that are not padding, ``(rows,)``."""
    used: int = 0
    """Rows already taken."""

    def __post_init__(self) -> None:
        self.tokens = int(self.lengths.sum()) - len(self.rows)
        self.digest = xxh3_64_hexdigest(self.rows.reshape(-1).data)

    @property
    def left(self) -> int:
        """Rows not yet taken."""
        return len(self.rows) - self.used

    def state(self) -> list[Any] | None:
        """Plain values from which the lane can be restored; None if no rows are left."""
        return [self.source, self.document, self.tokens, self.used, self.digest] if self.left else None


def _rows_of(tokens: np.ndarray, row_tokens: int, end_of_text: int) -> Packed:
    """The rows of one document, with ``<|endoftext|>`` before its first token."""
    packed = WHOLE_DOCUMENTS.pack([(0, tokens)], Position(), row_tokens, 1)
    packed.rows[:1, 0] = end_of_text
    return packed


class SourceDocuments(SourceRows):
    """The endless documents of one source, shuffled within each window.

    Args:
        number: Index of the source.
        windows: Reads its windows; no row may hold two documents.
        seed: Seed of the order.
        state: Where to resume, from :meth:`state`; the start when omitted.
    """

    used_of_window = "documents_used_of_window"

    def __init__(self, number: int, windows: Windows, seed: int, state: Cursor | None = None) -> None:
        super().__init__(windows, seed, state)
        self.number = number
        self._bounds = np.empty(
            0, dtype=np.int64
        )  # first row of each document of the open window, and the number of rows

    def _parts(self, packed: Packed) -> int:
        assert packed.documents is not None
        begins = np.flatnonzero(np.diff(packed.documents, prepend=-1))
        self._bounds = np.append(begins, len(packed.rows))
        return len(begins)

    def next_lane(self) -> Lane:
        """A lane with the next document."""
        packed = self._open_window()
        assert packed.documents is not None
        chosen = self._order[self.used]
        place = slice(self._bounds[chosen], self._bounds[chosen + 1])
        self.used += 1
        rows = packed.rows[place].copy()  # a view would keep the whole window in memory while a long document is read
        rows[0, 0] = self.windows.reader.tokenizer.end_of_text
        return Lane(self.number, int(packed.documents[place.start]), rows, packed.lengths[place].copy())

    def reopened(self, states: Sequence[list[Any]]) -> list[Lane]:
        """Restore the lanes that had these states, reading their documents again.

        Raises:
            WorkError: A document is missing or has changed.
        """
        wanted: dict[int, list[int]] = defaultdict(list)
        for place, (_, document, *_) in enumerate(states):
            wanted[document].append(place)
        found: dict[int, Lane] = {}
        reader = self.windows.reader
        for document, tokens in reader.tokens(min(wanted)) if wanted else ():
            for place in wanted.pop(document, ()):
                found[place] = self._restored(states[place], tokens)
            if not wanted:
                break
        if wanted:
            raise self._changed(min(wanted))
        return [found[place] for place in range(len(states))]

    def _restored(self, state: list[Any], tokens: np.ndarray) -> Lane:
        _, document, length, used, digest = state
        packed = _rows_of(tokens[:length], self.windows.row_tokens, self.windows.reader.tokenizer.end_of_text)
        lane = Lane(self.number, document, packed.rows, packed.lengths, used)
        if lane.digest != digest:
            raise self._changed(document)
        return lane

    def _changed(self, document: int) -> WorkError:
        place = next((found.origin for found in self.source.documents(document)), "its end")
        return WorkError(
            f"source {self.source.name!r} has changed since the checkpoint was saved: document {document} "
            f"({place}) is not the one that was being trained on"
        )


class LaneSequence(RowSequence):
    """The endless rows of all lanes: one row of each lane in turn, over and over.

    A lane takes its next document from the source with the smallest ``(assigned + 1) / weight``, where ``assigned``
    counts the rows of all its documents that lanes have taken: D'Hondt's rule, applied to whole documents.

    Args:
        sources: One :class:`SourceDocuments` per source.
        weights: Their relative shares.
        lanes: The content of each lane; None for a lane that takes its first document next.
        rows: Rows already taken, from a cursor.
    """

    sources: Sequence[SourceDocuments]

    def __init__(
        self, sources: Sequence[SourceDocuments], weights: Sequence[float], lanes: list[Lane | None], rows: int = 0
    ) -> None:
        super().__init__(sources, weights, rows)
        self.lanes = lanes
        self._assigned = [source.taken for source in sources]
        for lane in lanes:
            if lane is not None:
                self._assigned[lane.source] += lane.left

    def take(self, count: int) -> np.ndarray:
        """The next ``count`` rows, ``(count, block_size + 1)`` int64, padded with :data:`PADDING`."""
        rows = np.full((count, self.sources[0].windows.row_tokens), PADDING, dtype=np.int64)
        for row in rows:
            lane = self._lane(self.rows % len(self.lanes))
            length = lane.lengths[lane.used]
            row[:length] = lane.rows[lane.used, :length]
            lane.used += 1
            self.sources[lane.source].taken += 1
            self.rows += 1
        return rows

    def _lane(self, number: int) -> Lane:
        """The lane with this number; it takes a new document first if no rows are left."""
        lane = self.lanes[number]
        if lane is None or not lane.left:
            lags = [(given + 1) / weight for given, weight in zip(self._assigned, self.weights, strict=True)]
            lane = self.sources[lags.index(min(lags))].next_lane()
            self._assigned[lane.source] += lane.left
            self.lanes[number] = lane
        return lane

    def cursor(self) -> Cursor:
        """The position of the next row, as JSON values: about 50 bytes per lane."""
        return {**super().cursor(), "lanes": [None if lane is None else lane.state() for lane in self.lanes]}


@dataclass(frozen=True)
class LaneStream(Stream):
    """A :class:`~lightning_gpt.data.stream.Stream` whose rows come from ``lanes`` lanes."""

    lanes: int = 1

    def open(self, cursor: Cursor | None = None) -> LaneSequence:
        """The rows from ``cursor`` on; from the start when omitted."""
        of_source = cursor["sources"] if cursor else {}
        sources = [
            SourceDocuments(number, self.windows(reader), self.seed, of_source.get(reader.source.name))
            for number, reader in enumerate(self.readers)
        ]
        lanes: list[Lane | None] = [None] * self.lanes
        states: list[list[Any] | None] = cursor["lanes"] if cursor else []
        for source in sources:
            held = {number: state for number, state in enumerate(states) if state and state[0] == source.number}
            for number, lane in zip(held, source.reopened(list(held.values())), strict=True):
                lanes[number] = lane
        return LaneSequence(sources, self.weights, lanes, cursor["rows"] if cursor else 0)

    def identity(self) -> dict[str, Any]:
        """Also the number of lanes, which decides which documents are read side by side."""
        return {**super().identity(), "lanes (rows of an optimizer step)": self.lanes}


def side_by_side(documents: Sequence[np.ndarray], lanes: int, block_size: int, end_of_text: int) -> np.ndarray:
    """All rows of ``documents``, each assigned in turn to the lane that is free first (of several, the first).

    Args:
        documents: Tokens of each document, ``(tokens,)``.
        lanes: Number of lanes.
        block_size: Inputs per row, in tokens.
        end_of_text: The id to put before each document.

    Returns:
        ``(steps, lanes, block_size + 1)`` int64, padded with :data:`PADDING`; rows of an idle lane are all padding.
    """
    free = [(0, lane) for lane in range(lanes)]  # a heap of (first free step, lane)
    pieces: list[tuple[int, int, Packed]] = []
    for tokens in documents:
        begin, lane = free[0]
        packed = _rows_of(tokens, block_size + 1, end_of_text)
        heapreplace(free, (begin + len(packed.rows), lane))
        pieces.append((begin, lane, packed))
    steps = max(end for end, _ in free)
    rows = np.full((steps, lanes, block_size + 1), PADDING, dtype=np.int64)
    for begin, lane, packed in pieces:
        real = np.arange(block_size + 1) < packed.lengths[:, np.newaxis]
        rows[begin : begin + len(packed.rows), lane] = np.where(real, packed.rows.astype(np.int64), PADDING)
    return rows
