"""Training on the same few batches over and over, as ``Trainer(overfit_batches=...)`` asks for."""

import numpy as np

from lightning_gpt.data.mark import Cursor, Mark
from lightning_gpt.data.stream import Stream
from lightning_gpt.errors import CallError


def repeated_rows(overfit_batches: int | float, rows: int, accumulate: int, epoch: int | None) -> int | None:
    """How many rows are trained on over and over; None if ``overfit_batches`` is 0.

    Args:
        overfit_batches: The Trainer's option: a number of micro-batches, or a share of an epoch.
        rows: Rows of a micro-batch over all processes.
        accumulate: Micro-batches per optimizer step.
        epoch: Micro-batches of an epoch; None if unknown.

    Raises:
        CallError: They are not whole optimizer steps, or are a share of an epoch whose length is unknown.
    """
    if not overfit_batches:
        return None
    if isinstance(overfit_batches, float) and epoch is None:
        raise CallError(
            f"overfit_batches is {overfit_batches}, a share of an epoch, but the data has no known length: give a "
            f"whole number of batches"
        )
    share = isinstance(overfit_batches, float) and epoch is not None
    batches = int(epoch * overfit_batches) if share else int(overfit_batches)  # type: ignore[operator]
    if batches == 0 or batches % accumulate:
        raise CallError(
            f"overfit_batches {overfit_batches} is {batches} batches; it must be at least 1 and a multiple of "
            f"accumulate_grad_batches, {accumulate}"
        )
    return batches * rows


class FirstRows:
    """The first rows of a stream, over and over; its mark counts every row taken, as that of the stream does.

    Args:
        stream: Determines the rows.
        rows: How many.
        cursor: Where to start.
    """

    def __init__(self, stream: Stream, rows: int, cursor: Cursor | None) -> None:
        self._stream = stream
        self._rows = rows
        self._taken = cursor["rows"] if cursor else 0
        self._open = stream.open()
        self._open.take(self._taken % rows)
        self._drawn = Mark(cursor) if cursor else self._open.mark()

    def take(self, count: int) -> np.ndarray:
        """The next ``count`` rows, ``(count, block_size + 1)`` int64."""
        pieces = []
        while count:
            place = self._taken % self._rows
            if place == 0:
                self._open = self._stream.open()
            piece = min(count, self._rows - place)
            pieces.append(self._open.take(piece))
            self._taken, count = self._taken + piece, count - piece
            if self._taken <= self._rows:
                self._drawn = self._open.mark()
        return np.concatenate(pieces)

    def take_share(self, count: int, begin: int, end: int) -> np.ndarray:
        """Pass over the next ``count`` rows; returns those from number ``begin`` to ``end - 1`` of them."""
        return self.take(count)[begin:end]

    def skip(self, count: int) -> None:
        """Pass over the next ``count`` rows."""
        self.take(count)

    @property
    def rows(self) -> int:
        """Rows already taken."""
        return self._taken

    def mark(self) -> Mark:
        """The position of the next row."""
        return self._drawn.counting(self._taken)
