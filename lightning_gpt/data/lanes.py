"""Documents side by side: row r of an optimizer step continues where row r of the previous step stopped.

A *lane* holds one document and contributes one row of it to each optimizer step. When the document ends, the lane takes
the next document. Documents come in a fixed order: each window of documents of a source is shuffled with a seed derived
from (seed, source, pass, window). There is one lane per row of an optimizer step, however the rows are shared among
processes and micro-batches: micro-batch m of a step has the m-th ``batch_size × processes`` lanes, and process r the
r-th ``batch_size`` of those. A model can therefore keep its memory of a document under the number of its lane.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from heapq import heapreplace
from typing import Any, NamedTuple

import numpy as np

from lightning_gpt.data.indexed import IndexedWindows
from lightning_gpt.data.mark import DOCUMENT, LENGTH, SOURCE, USED, Cursor, LaneMark, rows_of_lengths
from lightning_gpt.data.packing import PADDING, WHOLE_DOCUMENTS, Packed, Position, WindowRows
from lightning_gpt.data.reader import Windows
from lightning_gpt.data.stream import RowSequence, SourceRows, Stream
from lightning_gpt.errors import WorkError


class HeldTokens(NamedTuple):
    """The tokens of the document that a lane reads."""

    source: int
    document: int
    tokens: np.ndarray


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

    @staticmethod
    def _parts(packed: WindowRows) -> int:
        return len(packed.whole_documents[0])

    def waiting(self, most: int) -> np.ndarray:
        """The next ``most`` documents of the open window, or those that are left of it: number, tokens and hash.

        Returns:
            ``(3, documents)`` int64.
        """
        if self._packed is None:
            return np.empty((3, 0), dtype=np.int64)
        return self._packed.whole_documents[:, self._order[self.used : self.used + most]]

    def open_window(self) -> None:
        """Open the window that contains the next document."""
        self._open_window()

    def pass_on(self, count: int) -> list[np.ndarray]:
        """Pass over ``count`` documents of the open window; returns their tokens, or nothing if an index finds them."""
        assert self._packed is not None
        places = self._order[self.used : self.used + count]
        self.used += count
        self._look_ahead()
        return self._packed.held(places)

    def tokens(self, document: int, length: int) -> np.ndarray:
        """The tokens of a document that :meth:`pass_on` did not return."""
        assert isinstance(self.windows, IndexedWindows)
        return self.windows.tokens(document, length)

    def reopened(self, states: Sequence[list[Any]]) -> list[tuple[list[int], np.ndarray | None]]:
        """Columns of the table of lanes, and tokens that have to be held, of lanes that had these states.

        Raises:
            WorkError: A document is missing or has changed.
        """
        found = self.windows.documents({document: length for _, document, length, *_ in states})
        lanes = []
        for source, document, length, used, digest in states:
            again = found.get(document)
            if again is None or (again.length, f"{again.hash:016x}") != (length, digest):
                raise self._changed(document)
            signed = int(np.uint64(again.hash).view(np.int64))
            lanes.append(([source, document, length, signed, used], again.tokens))
        return lanes

    def _changed(self, document: int) -> WorkError:
        place = next((found.origin for found in self.source.documents(document)), "its end")
        return WorkError(
            f"source {self.source.name!r} has changed since the checkpoint was saved: document {document} "
            f"({place}) is not the one that was being trained on"
        )


class LaneSequence(RowSequence):
    """The endless rows of all lanes: one row of each lane in turn, over and over.

    A lane takes its next document from the source with the smallest ``(assigned + 1) / weight``, where ``assigned``
    counts the rows of all its documents that lanes have taken: D'Hondt's rule, applied to whole documents. What all
    lanes read is one table, and the lanes that a step leaves without a document get their next ones together, because
    every process has to follow the lanes of all.

    Args:
        sources: One :class:`SourceDocuments` per source.
        weights: Their relative shares.
        end_of_text: The token before the first of each document.
        lanes: What each lane reads, ``(5, lanes)`` int64 (:mod:`~lightning_gpt.data.mark`); zeros for a lane that
            takes its first document next.
        held: Tokens of documents that no index finds, by lane.
        rows: Rows already taken, from a cursor.
    """

    sources: Sequence[SourceDocuments]

    def __init__(
        self,
        sources: Sequence[SourceDocuments],
        weights: Sequence[float],
        end_of_text: int,
        lanes: np.ndarray,
        held: dict[int, HeldTokens],
        rows: int = 0,
    ) -> None:
        super().__init__(sources, weights, rows)
        self.end_of_text = end_of_text
        self._step = sources[0].windows.row_tokens - 1
        self._lanes = lanes
        self._held = held
        self._left = rows_of_lengths(lanes[LENGTH], self._step) - lanes[USED]
        remaining = np.bincount(lanes[SOURCE], self._left, minlength=len(sources)).astype(int).tolist()
        self._assigned = [source.taken + rows_left for source, rows_left in zip(sources, remaining, strict=True)]

    def take_share(self, count: int, begin: int, end: int) -> np.ndarray:
        """Pass over the next ``count`` rows; returns those from number ``begin`` to ``end - 1`` of them.

        Of prepared sources only these are read.
        """
        rows = np.full((end - begin, self._step + 1), PADDING, dtype=np.int64)
        done, lanes = 0, self._lanes.shape[1]
        while done < count:
            first = self.rows % lanes
            taken = slice(first, first + min(count - done, lanes - first))
            self._refill(first + np.flatnonzero(self._left[taken] == 0))
            for row in range(max(begin - done, 0), min(end - done, taken.stop - first)):
                self._read(first + row, rows[done + row - begin])
            self._lanes[USED, taken] += 1
            self._left[taken] -= 1
            for source, more in zip(self.sources, np.bincount(self._lanes[SOURCE, taken]).tolist(), strict=False):
                source.taken += more
            self.rows += taken.stop - first
            done += taken.stop - first
        return rows

    def skip(self, count: int) -> None:
        """Pass over the next ``count`` rows."""
        self.take_share(count, 0, 0)

    def _read(self, lane: int, row: np.ndarray) -> None:
        """Write the next row of a lane to the beginning of ``row``: one token more than a row has targets."""
        source, document, length, _, used = self._lanes[:, lane].tolist()
        held = self._held.get(lane)
        if held is None or held[:2] != (source, document):
            held = HeldTokens(source, document, self.sources[source].tokens(document, length))
            self._held[lane] = held
        begin = used * self._step
        following = held.tokens[begin : begin + self._step]
        row[0] = held.tokens[begin - 1] if used else self.end_of_text
        row[1 : len(following) + 1] = following

    def _refill(self, lanes: np.ndarray) -> None:
        """Give each of these lanes, of whose document no row is left, its next one."""
        while len(lanes):
            waiting = [source.waiting(len(lanes)) for source in self.sources]
            source_of, unopened = self._next_sources([documents[1] for documents in waiting], len(lanes))
            for number, documents in enumerate(waiting):
                own = lanes[: len(source_of)][source_of == number]
                if len(own):
                    self._give(number, own, documents[:, : len(own)])
            if unopened is not None:
                self.sources[unopened].open_window()
            lanes = lanes[len(source_of) :]

    def _next_sources(self, lengths: Sequence[np.ndarray], most: int) -> tuple[np.ndarray, int | None]:
        """Which source gives each of the next documents, as far as the open windows tell.

        Args:
            lengths: Tokens of the documents that wait in each source's open window.
            most: How many documents are wanted.

        Returns:
            The sources, at most ``most``; and, if they are fewer, the source that has to open its next window.
        """
        lags = []
        for given, weight, each in zip(self._assigned, self.weights, lengths, strict=True):
            rows_before = np.cumsum(np.append(0, rows_of_lengths(each, self._step)))
            lags.append((given + rows_before + 1) / weight)  # the last is that of the document after those that wait
        sizes = [len(each) for each in lags]
        source_of = np.repeat(np.arange(len(lags)), sizes)
        # a source's lags increase, so the smallest overall are those that one document at a time would choose
        order = np.argsort(np.concatenate(lags), kind="stable")[:most]
        is_unopened = np.zeros(len(source_of), dtype=bool)
        is_unopened[np.cumsum(sizes) - 1] = True
        unknown = np.flatnonzero(is_unopened[order])
        if not len(unknown):
            return source_of[order], None
        return source_of[order[: unknown[0]]], int(source_of[order[unknown[0]]])

    def _give(self, number: int, lanes: np.ndarray, documents: np.ndarray) -> None:
        """Give these lanes the next documents of a source, ``(3, lanes)``."""
        rows, tokens = rows_of_lengths(documents[1], self._step), self.sources[number].pass_on(len(lanes))
        self._lanes[SOURCE, lanes] = number
        self._lanes[DOCUMENT:USED, lanes] = documents
        self._lanes[USED, lanes] = 0
        self._left[lanes] = rows
        self._assigned[number] += int(rows.sum())
        if tokens:
            for lane, document, text in zip(lanes.tolist(), documents[0].tolist(), tokens, strict=True):
                self._held[lane] = HeldTokens(number, document, text)

    def mark(self) -> LaneMark:
        """The position of the next row."""
        return LaneMark(self._position(), self._lanes.copy(), self._step)


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
        table, held = np.zeros((5, self.lanes), dtype=np.int64), {}
        states: list[list[Any] | None] = cursor["lanes"] if cursor else []
        for source in sources:
            own = {lane: state for lane, state in enumerate(states) if state and state[0] == source.number}
            for lane, (column, tokens) in zip(own, source.reopened(list(own.values())), strict=True):
                table[:, lane] = column
                if tokens is not None:
                    held[lane] = HeldTokens(source.number, column[DOCUMENT], tokens)
        return LaneSequence(sources, self.weights, self.end_of_text, table, held, cursor["rows"] if cursor else 0)

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
