"""Documents side by side: row r of an optimizer step continues where row r of the previous step stopped.

A *lane* holds one document and contributes one row of it to each optimizer step. When the document ends, the lane takes
the next document. Documents come in a fixed order: each window of documents of a source is shuffled with a seed derived
from (seed, source, pass, window). There is one lane per row of an optimizer step, however the rows are shared among
processes and micro-batches: micro-batch m of a step has the m-th ``batch_size × processes`` lanes, and process r the
r-th ``batch_size`` of those. A model can therefore keep its memory of a document under the number of its lane.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from heapq import heapreplace
from typing import Any

import numpy as np

from lightning_gpt.data.indexed import IndexedWindows
from lightning_gpt.data.packing import (
    PADDING,
    WHOLE_DOCUMENTS,
    Packed,
    Position,
    WholeDocument,
    WindowRows,
    whole_document,
)
from lightning_gpt.data.stream import Cursor, RowSequence, SourceRows, Stream, Windows
from lightning_gpt.errors import WorkError


class Lane:
    """The document that one row of every step reads.

    Args:
        source: Index of its source.
        document: The document; its tokens are read when the first of its rows is.
        step: Tokens per row that are targets.
    """

    def __init__(self, source: int, document: WholeDocument, step: int) -> None:
        self.source = source
        self.document = document
        self.step = step
        self.rows = -(-document.length // step)

    @cached_property
    def _tokens(self) -> np.ndarray:
        return self.document.read()

    def read(self, row: np.ndarray, number: int, end_of_text: int) -> None:
        """Write row ``number`` of the document to the beginning of ``row``: one token more than a row has targets."""
        begin = number * self.step
        following = self._tokens[begin : begin + self.step]
        row[0] = self._tokens[begin - 1] if number else end_of_text
        row[1 : len(following) + 1] = following

    def state(self, used: int) -> list[Any]:
        """Plain values from which a lane is restored of which ``used`` rows are taken."""
        return [self.source, self.document.number, self.document.length, used, self.document.digest]


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

    def __init__(self, number: int, windows: Windows | IndexedWindows, seed: int, state: Cursor | None = None) -> None:
        super().__init__(windows, seed, state)
        self.number = number

    def _parts(self, packed: WindowRows) -> int:
        return packed.whole_documents

    def next_lane(self) -> Lane:
        """A lane with the next document."""
        packed = self._open_window()
        chosen = int(self._order[self.used])
        self.used += 1
        return self._lane(packed.whole_document(chosen))

    def _lane(self, document: WholeDocument) -> Lane:
        return Lane(self.number, document, self.windows.row_tokens - 1)

    def reopened(self, states: Sequence[list[Any]]) -> list[Lane]:
        """Restore the lanes that had these states, finding their documents again.

        Raises:
            WorkError: A document is missing or has changed.
        """
        lengths = {document: length for _, document, length, *_ in states}
        found = self._found(lengths)
        for _, document, length, _, digest in states:
            if document not in found or (found[document].length, found[document].digest) != (length, digest):
                raise self._changed(document)
        return [self._lane(found[state[1]]) for state in states]

    def _found(self, lengths: dict[int, int]) -> dict[int, WholeDocument]:
        """The documents with these numbers, cut to these lengths; a prepared source has them in its index."""
        if isinstance(self.windows, IndexedWindows):
            return self.windows.whole_documents(lengths)
        found: dict[int, WholeDocument] = {}
        for number, tokens in self.windows.reader.tokens(min(lengths)) if lengths else ():
            if number in lengths:
                found[number] = whole_document(number, tokens[: lengths[number]])
            if len(found) == len(lengths):
                break
        return found

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
        end_of_text: The token before the first of each document.
        lanes: The content of each lane; None for a lane that takes its first document next.
        used: Rows of each lane's document that are taken already.
        rows: Rows already taken, from a cursor.
    """

    sources: Sequence[SourceDocuments]

    def __init__(
        self,
        sources: Sequence[SourceDocuments],
        weights: Sequence[float],
        end_of_text: int,
        lanes: list[Lane | None],
        used: Sequence[int],
        rows: int = 0,
    ) -> None:
        super().__init__(sources, weights, rows)
        self.lanes = lanes
        self.end_of_text = end_of_text
        self._used = np.array(used)
        self._left = np.array([0 if lane is None else lane.rows for lane in lanes]) - self._used
        self._source = np.array([0 if lane is None else lane.source for lane in lanes])
        self._assigned = [source.taken for source in sources]
        for number, rows_left in enumerate(self._left.tolist()):
            self._assigned[int(self._source[number])] += rows_left

    def take_share(self, count: int, begin: int, end: int) -> np.ndarray:
        """Pass over the next ``count`` rows; returns those from number ``begin`` to ``end - 1`` of them.

        Of prepared sources only these are read.
        """
        rows = np.full((end - begin, self.sources[0].windows.row_tokens), PADDING, dtype=np.int64)
        done = 0
        while done < count:
            first = self.rows % len(self.lanes)
            taken = slice(first, first + min(count - done, len(self.lanes) - first))
            for number in np.flatnonzero(self._left[taken] == 0).tolist():
                self._refill(first + number)
            for row in range(max(begin - done, 0), min(end - done, taken.stop - first)):
                lane = self.lanes[first + row]
                assert lane is not None
                lane.read(rows[done + row - begin], int(self._used[first + row]), self.end_of_text)
            self._used[taken] += 1
            self._left[taken] -= 1
            for source, more in zip(self.sources, np.bincount(self._source[taken]).tolist(), strict=False):
                source.taken += more
            self.rows += taken.stop - first
            done += taken.stop - first
        return rows

    def skip(self, count: int) -> None:
        """Pass over the next ``count`` rows."""
        self.take_share(count, 0, 0)

    def _refill(self, number: int) -> None:
        """Give a lane of which no row is left its next document."""
        lags = [(given + 1) / weight for given, weight in zip(self._assigned, self.weights, strict=True)]
        lane = self.sources[lags.index(min(lags))].next_lane()
        self._assigned[lane.source] += lane.rows
        self.lanes[number] = lane
        self._used[number], self._left[number], self._source[number] = 0, lane.rows, lane.source

    def cursor(self) -> Cursor:
        """The position of the next row, as JSON values: about 50 bytes per lane."""
        states = [
            lane.state(used) if lane is not None and left else None
            for lane, used, left in zip(self.lanes, self._used.tolist(), self._left.tolist(), strict=True)
        ]
        return {**super().cursor(), "lanes": states}


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
        used = [0] * self.lanes
        states: list[list[Any] | None] = cursor["lanes"] if cursor else []
        for source in sources:
            held = {number: state for number, state in enumerate(states) if state and state[0] == source.number}
            for number, lane in zip(held, source.reopened(list(held.values())), strict=True):
                lanes[number], used[number] = lane, held[number][3]
        return LaneSequence(sources, self.weights, self.end_of_text, lanes, used, cursor["rows"] if cursor else 0)

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
