"""Documents side by side: row r of an optimizer step goes on where row r of the step before stopped.

A *lane* holds one document and gives a row of it to each optimizer step; when its document ends, it takes the next one
of the exact order: of each source the windows of documents in turn, each put in an order drawn from (seed, source,
pass, window). There are as many lanes as an optimizer step has rows, whatever processes and micro-batches share them:
micro-batch m of a step has the m-th ``batch_size × processes`` lanes, and process r the r-th ``batch_size`` of those.
So a model may keep what it remembers of a document by the number of its lane.
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
    """Which of the sources it is from."""
    document: int
    """Its number there."""
    rows: np.ndarray
    """``(rows, row_tokens)``, all of the document."""
    lengths: np.ndarray
    """``(rows,)``, tokens of each row that are not padding."""
    used: int = 0
    """Rows that were taken."""

    def __post_init__(self) -> None:
        self.tokens = int(self.lengths.sum()) - len(self.rows)
        self.digest = xxh3_64_hexdigest(self.rows.reshape(-1).data)

    @property
    def left(self) -> int:
        """Rows that are still to come."""
        return len(self.rows) - self.used

    def state(self) -> list[Any] | None:
        """What finds it again, as plain values: None where nothing is left of it."""
        return [self.source, self.document, self.tokens, self.used, self.digest] if self.left else None


def _rows_of(tokens: np.ndarray, row_tokens: int, end_of_text: int) -> Packed:
    """The rows of one document, opened by ``<|endoftext|>``."""
    packed = WHOLE_DOCUMENTS.pack([(0, tokens)], Position(), row_tokens, 1)
    packed.rows[:1, 0] = end_of_text
    return packed


class SourceDocuments(SourceRows):
    """The endless documents of one source, each window of them in an order of its own.

    Args:
        number: Which of the sources it is.
        windows: Its windows, of rows that hold no two documents.
        seed: Of the order.
        state: Where to go on, from :meth:`state`; the start when omitted.
    """

    used_of_window = "documents_used_of_window"

    def __init__(self, number: int, windows: Windows, seed: int, state: Cursor | None = None) -> None:
        super().__init__(windows, seed, state)
        self.number = number
        self._bounds = np.empty(0, dtype=np.int64)  # where the documents of the open window begin, and its end

    def _parts(self, packed: Packed) -> int:
        assert packed.documents is not None
        begins = np.flatnonzero(np.diff(packed.documents, prepend=-1))
        self._bounds = np.append(begins, len(packed.rows))
        return len(begins)

    def next_lane(self) -> Lane:
        """The next document of the order."""
        packed = self._open_window()
        assert packed.documents is not None
        chosen = self._order[self.used]
        place = slice(self._bounds[chosen], self._bounds[chosen + 1])
        self.used += 1
        rows = packed.rows[place].copy()  # so that a long document does not keep its whole window
        rows[0, 0] = self.windows.reader.tokenizer.end_of_text
        return Lane(self.number, int(packed.documents[place.start]), rows, packed.lengths[place].copy())

    def reopened(self, states: Sequence[list[Any]]) -> list[Lane]:
        """The lanes that had these states, their documents read again."""
        wanted: dict[int, list[int]] = defaultdict(list)
        for place, (_, document, *_) in enumerate(states):
            wanted[document].append(place)
        found: dict[int, Lane] = {}
        reader = self.windows.reader
        for document, tokens in reader.tokens(min(wanted)) if wanted else ():
            for place in wanted.pop(document, ()):
                found[place] = self._again(states[place], tokens)
            if not wanted:
                break
        if wanted:
            raise self._changed(min(wanted))
        return [found[place] for place in range(len(states))]

    def _again(self, state: list[Any], tokens: np.ndarray) -> Lane:
        _, document, length, used, digest = state
        packed = _rows_of(tokens[:length], self.windows.row_tokens, self.windows.reader.tokenizer.end_of_text)
        lane = Lane(self.number, document, packed.rows, packed.lengths, used)
        if lane.digest != digest:
            raise self._changed(document)
        return lane

    def _changed(self, document: int) -> WorkError:
        place = next((found.origin for found in self.source.documents(document)), "its end")
        return WorkError(
            f"source {self.source.name!r} has changed since the checkpoint was saved: its document {document} "
            f"({place}) is not what was being trained on"
        )


class LaneSequence(RowSequence):
    """The endless rows of lanes, lane after lane, over and over.

    The source of a lane's next document is the one with the smallest ``(given + 1) / weight``, ``given`` being the rows
    of all its documents that lanes have taken: D'Hondt's rule, by documents instead of rows.

    Args:
        sources: One :class:`SourceDocuments` each.
        weights: Their shares, in any unit.
        lanes: What each holds; None for one that takes a document next.
        rows: How many rows were taken before, from a cursor.
    """

    sources: Sequence[SourceDocuments]

    def __init__(
        self, sources: Sequence[SourceDocuments], weights: Sequence[float], lanes: list[Lane | None], rows: int = 0
    ) -> None:
        super().__init__(sources, weights, rows)
        self.lanes = lanes
        self._given = [source.taken for source in sources]
        for lane in lanes:
            if lane is not None:
                self._given[lane.source] += lane.left

    def take(self, count: int) -> np.ndarray:
        """The next ``count`` rows, ``(count, block_size + 1)`` int64; what is padded is :data:`PADDING`."""
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
        """The lane, with a document that has rows left."""
        lane = self.lanes[number]
        if lane is None or not lane.left:
            lags = [(given + 1) / weight for given, weight in zip(self._given, self.weights, strict=True)]
            lane = self.sources[lags.index(min(lags))].next_lane()
            self._given[lane.source] += lane.left
            self.lanes[number] = lane
        return lane

    def cursor(self) -> Cursor:
        """Where the next row comes from: JSON values only, some 50 bytes a lane."""
        return {**super().cursor(), "lanes": [None if lane is None else lane.state() for lane in self.lanes]}


@dataclass(frozen=True)
class LaneStream(Stream):
    """A :class:`~lightning_gpt.data.stream.Stream` whose rows are those of ``lanes`` lanes."""

    lanes: int = 1

    def open(self, cursor: Cursor | None = None) -> LaneSequence:
        """The rows from ``cursor`` on."""
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
        """Also the number of lanes: another number would read other documents side by side."""
        return {**super().identity(), "lanes (rows of an optimizer step)": self.lanes}


def side_by_side(documents: Sequence[np.ndarray], lanes: int, block_size: int, end_of_text: int) -> np.ndarray:
    """All rows of a few ``documents`` in the fewest steps that this rule takes: ``(steps, lanes, block_size + 1)``.

    Each document goes to the lane that is free first, the first of several. What is padded is :data:`PADDING`, and a
    lane that has no document left gives rows that are all padding.
    """
    free = [(0, lane) for lane in range(lanes)]  # a heap: when each lane is free
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
