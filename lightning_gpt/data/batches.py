"""Rows to batches: what each process and each loader worker takes of the one global sequence."""

import json
from collections.abc import Iterator, Sequence
from itertools import count
from typing import TypedDict

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from lightning_gpt.data.lanes import LaneStream, side_by_side
from lightning_gpt.data.stream import Cursor, RowSequence, Stream
from lightning_gpt.models.head import IGNORED


class Batch(TypedDict, total=False):
    """``ids`` and ``targets``, both ``(rows, block_size)`` int64; a training batch has its ``cursor`` too."""

    ids: Tensor
    targets: Tensor
    documents: Tensor
    """Where documents are kept apart: the number of each token's document in its row, ``(rows, block_size)``."""
    starts: Tensor
    """Where rows are lanes: whether each begins a document or goes on in one, ``(rows,)`` booleans."""
    cursor: str
    """JSON: where the sequence goes on after this batch of *all* processes."""


def batch_of(inputs: Tensor, targets: Tensor, end_of_text: int | None) -> Batch:
    """A batch; with ``end_of_text``, the id that closes each document, its documents are numbered."""
    batch = Batch(ids=inputs, targets=targets)
    if end_of_text is not None:
        closes = (inputs == end_of_text).long()
        batch["documents"] = closes.cumsum(dim=1) - closes
    return batch


def batch_of_rows(rows: np.ndarray, end_of_text: int | None = None) -> Batch:
    """The batch of rows ``(rows, block_size + 1)``: what is padded is fed as token 0, and as a target it is ignored."""
    inputs, targets = np.maximum(rows[:, :-1], 0), rows[:, 1:].copy()
    return batch_of(torch.from_numpy(inputs), torch.from_numpy(targets), end_of_text)


def starts_of(rows: np.ndarray, end_of_text: int) -> Tensor:
    """Which rows of lanes begin a document: those that its opening ``<|endoftext|>`` comes first in."""
    return torch.from_numpy(rows[:, 0] == end_of_text)


class TrainBatches(IterableDataset[Batch]):
    """The training batches of one process, from :attr:`cursor` to the end of the epoch.

    Micro-batch m of the run is the next ``batch_size × world_size`` rows of the global sequence; process r has
    rows ``r × batch_size`` and on of it, and loader worker j of k makes every k-th micro-batch. Every worker
    walks the whole sequence, so that the rows are the same however many processes and workers share it.

    Args:
        stream: What the rows are a function of.
        batch_size: Rows per process and micro-batch.
        rank: Of this process.
        world_size: Number of processes.
        steps_per_epoch: Optimizer steps in an epoch; without it the epoch has no end.
        accumulate: Micro-batches in an optimizer step.
        separate: Whether each token's document is numbered, so that the model can keep documents apart.
        cursor: Where to start; may be set again before a new iteration.
    """

    def __init__(
        self,
        stream: Stream,
        batch_size: int,
        rank: int,
        world_size: int,
        steps_per_epoch: int | None,
        accumulate: int,
        separate: bool = False,
        cursor: Cursor | None = None,
    ) -> None:
        self.stream = stream
        self.batch_size = batch_size
        self.rank = rank
        self.world_size = world_size
        self.steps_per_epoch = steps_per_epoch
        self.accumulate = accumulate
        self.separate = separate
        self.cursor = cursor
        self._open: RowSequence | None = None

    @property
    def micro_batches_per_epoch(self) -> int | None:
        """Length of a whole epoch in micro-batches of one process."""
        return None if self.steps_per_epoch is None else self.steps_per_epoch * self.accumulate

    @property
    def _end_of_text(self) -> int | None:
        return self.stream.end_of_text if self.separate else None

    def _left_in_epoch(self) -> int | None:
        if self.micro_batches_per_epoch is None:
            return None
        done_rows = self.cursor["rows"] if self.cursor else 0
        done = done_rows // (self.batch_size * self.world_size)
        return self.micro_batches_per_epoch - done % self.micro_batches_per_epoch

    def _sequence(self) -> RowSequence:
        """The open sequence where it stands at the cursor (the next epoch, in one process), else a new one."""
        if self._open is None or self._open.cursor() != self.cursor:
            self._open = self.stream.open(self.cursor)
        return self._open

    def __iter__(self) -> Iterator[Batch]:
        worker = get_worker_info()
        first, workers = (worker.id, worker.num_workers) if worker else (0, 1)
        sequence, left = self._sequence(), self._left_in_epoch()
        mine = slice(self.rank * self.batch_size, (self.rank + 1) * self.batch_size)
        for number in count() if left is None else range(left):
            rows = sequence.take(self.batch_size * self.world_size)
            if number % workers == first:
                batch = batch_of_rows(rows[mine], self._end_of_text)
                if isinstance(self.stream, LaneStream):
                    batch["starts"] = starts_of(rows[mine], self.stream.end_of_text)
                batch["cursor"] = json.dumps(sequence.cursor())
                yield batch


class SizedTrainBatches(TrainBatches):
    """Training batches of an epoch of known length; the length is that of a whole epoch, also when resumed."""

    def __len__(self) -> int:
        assert self.micro_batches_per_epoch is not None
        return self.micro_batches_per_epoch


class EvalRows(IterableDataset[Batch]):
    """The rows of a validation or test split, in batches; process r has the r-th rows of each.

    Args:
        inputs: Of all processes, ``(rows, block_size)``, the rows a multiple of those of a batch of all processes.
        targets: Of the same shape; what shall not count is :data:`~lightning_gpt.models.head.IGNORED`.
        batch_size: Rows per process and batch.
        rank: Of this process.
        world_size: Number of processes.
        end_of_text: The id that closes each document, where documents are kept apart.
        starts: Where rows are lanes: which begin a document, ``(rows,)``.
    """

    def __init__(
        self,
        inputs: Tensor,
        targets: Tensor,
        batch_size: int,
        rank: int,
        world_size: int,
        end_of_text: int | None = None,
        starts: Tensor | None = None,
    ) -> None:
        self._inputs, self._targets, self._starts = inputs, targets, starts
        self.batch_size = batch_size
        self.rank = rank
        self.world_size = world_size
        self.end_of_text = end_of_text

    @property
    def all_targets(self) -> Tensor:
        """The targets of all processes, ``(rows, block_size)``, with the ignored ones."""
        return self._targets

    def __len__(self) -> int:
        return len(self._inputs) // (self.batch_size * self.world_size)

    def __iter__(self) -> Iterator[Batch]:
        worker = get_worker_info()
        first, workers = (worker.id, worker.num_workers) if worker else (0, 1)
        for number in range(first, len(self), workers):
            start = (number * self.world_size + self.rank) * self.batch_size
            rows = slice(start, start + self.batch_size)
            batch = batch_of(self._inputs[rows], self._targets[rows], self.end_of_text)
            if self._starts is not None:
                batch["starts"] = self._starts[rows]
            yield batch


class EvalBatches(EvalRows):
    """A validation or test split, each token after the first predicted exactly once over all processes.

    Consecutive rows share one token (the last target of one is the first input of the next). Rows and batches
    that are missing to make every process's share equal have :data:`~lightning_gpt.models.head.IGNORED` targets.

    Args:
        tokens: The split, ``(tokens,)``.
        block_size: Inputs in a row.
        batch_size: Rows per process and batch.
        rank: Of this process.
        world_size: Number of processes.
        end_of_text: The id that closes each document, where documents are kept apart.
    """

    def __init__(
        self,
        tokens: np.ndarray,
        block_size: int,
        batch_size: int,
        rank: int,
        world_size: int,
        end_of_text: int | None = None,
    ) -> None:
        rows = max(1, -(-(len(tokens) - 1) // block_size))
        size = -(-rows // (batch_size * world_size)) * batch_size * world_size * block_size
        inputs, targets = np.zeros(size, dtype=np.int64), np.full(size, IGNORED, dtype=np.int64)
        inputs[: len(tokens) - 1], targets[: len(tokens) - 1] = tokens[:-1], tokens[1:]
        ids, following = (torch.from_numpy(flat.reshape(-1, block_size)) for flat in (inputs, targets))
        super().__init__(ids, following, batch_size, rank, world_size, end_of_text)


class EvalLanes(EvalRows):
    """A validation or test split as lanes, so that a model may remember each document from its beginning.

    Every token is predicted exactly once over all processes, the first of a document from the ``<|endoftext|>`` that
    opens it; row r of a batch goes on where row r of the batch before stopped.

    Args:
        documents: The documents of the split, each closed.
        block_size: Inputs in a row.
        batch_size: Rows per process and batch.
        rank: Of this process.
        world_size: Number of processes.
        end_of_text: The id that opens and closes each document.
    """

    def __init__(
        self,
        documents: Sequence[np.ndarray],
        block_size: int,
        batch_size: int,
        rank: int,
        world_size: int,
        end_of_text: int,
    ) -> None:
        rows = side_by_side(documents, batch_size * world_size, block_size, end_of_text).reshape(-1, block_size + 1)
        both = batch_of_rows(rows)
        starts = starts_of(rows, end_of_text)
        super().__init__(both["ids"], both["targets"], batch_size, rank, world_size, starts=starts)
