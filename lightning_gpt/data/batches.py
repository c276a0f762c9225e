"""From rows to batches: the share of the global sequence that each process and loader worker takes."""

from collections.abc import Iterator, Sequence
from itertools import count
from typing import Any, TypedDict

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from lightning_gpt.data.first_rows import FirstRows
from lightning_gpt.data.lanes import LaneStream, side_by_side
from lightning_gpt.data.mark import Cursor, Mark
from lightning_gpt.data.stream import RowSequence, Stream
from lightning_gpt.models.head import IGNORED
from lightning_gpt.trust import TrustedModules


class Batch(TypedDict, total=False):
    """``ids`` and ``targets``, both ``(rows, block_size)`` int64; the other keys are present where they apply."""

    ids: Tensor
    targets: Tensor
    documents: Tensor
    """With separate documents: the index within its row of each token's document, ``(rows, block_size)`` int64."""
    starts: Tensor
    """With lanes: whether each row begins a document rather than continuing one, ``(rows,)`` bool."""
    mark: Mark
    """In training: where the rows continue after this batch of *all* processes."""


def batch_of(inputs: Tensor, targets: Tensor, end_of_text: int | None) -> Batch:
    """A batch of ``inputs`` and ``targets``.

    Args:
        inputs: ``(rows, block_size)`` int64.
        targets: ``(rows, block_size)`` int64.
        end_of_text: The id that ends each document; if given, the batch gets ``documents``.
    """
    batch = Batch(ids=inputs, targets=targets)
    if end_of_text is not None:
        closes = (inputs == end_of_text).long()
        batch["documents"] = closes.cumsum(dim=1) - closes
    return batch


def batch_of_rows(rows: np.ndarray, end_of_text: int | None = None) -> Batch:
    """The batch of rows ``(rows, block_size + 1)``; padding becomes token 0 as an input and is ignored as a target."""
    inputs, targets = np.maximum(rows[:, :-1], 0), rows[:, 1:].copy()
    return batch_of(torch.from_numpy(inputs), torch.from_numpy(targets), end_of_text)


def plain(batch: Any) -> Any:
    """``batch`` as tensors and plain values: if it has a ``mark``, with the ``cursor`` instead."""
    if not isinstance(batch, dict) or "mark" not in batch:
        return batch
    rest = {name: value for name, value in batch.items() if name != "mark"}
    return {**rest, "cursor": batch["mark"].cursor()}


def starts_of(rows: np.ndarray, end_of_text: int) -> Tensor:
    """Which rows of lanes begin a document, ``(rows,)`` bool: those whose first token is ``<|endoftext|>``."""
    return torch.from_numpy(rows[:, 0] == end_of_text)


class TrainBatches(IterableDataset[Batch]):
    """The training batches of one process, from :attr:`mark` to the end of the epoch.

    Each micro-batch is the next ``batch_size × world_size`` rows of the global sequence. Process r takes
    ``batch_size`` of them, starting with row ``r × batch_size``, and loader worker j of k makes every k-th micro-batch
    starting with the j-th. Every worker passes over the whole sequence, so the global batches are the same for any
    number of processes and workers; of a prepared corpus it reads its own rows alone.

    Args:
        stream: Determines the rows.
        batch_size: Rows per process and micro-batch.
        rank: Index of this process.
        world_size: Number of processes.
        steps_per_epoch: Optimizer steps per epoch; the epoch never ends when None.
        accumulate: Micro-batches per optimizer step.
        ends: Whether an iteration ends with the epoch; otherwise the trainer ends it, after fewer batches.
        repeated_rows: Take only the first rows of the sequence, this many, over and over; all rows when None.
        separate: Whether batches say which document each token belongs to, so that the model can separate them.
        cursor: Where to start; :attr:`mark` may be set again before a new iteration.
    """

    def __init__(
        self,
        stream: Stream,
        batch_size: int,
        rank: int,
        world_size: int,
        steps_per_epoch: int | None,
        accumulate: int,
        ends: bool = True,
        repeated_rows: int | None = None,
        separate: bool = False,
        cursor: Cursor | None = None,
    ) -> None:
        self.stream = stream
        self.batch_size = batch_size
        self.rank = rank
        self.world_size = world_size
        self.steps_per_epoch = steps_per_epoch
        self.accumulate = accumulate
        self.ends = ends
        self.repeated_rows = repeated_rows
        self.separate = separate
        self.mark = Mark(cursor) if cursor else None
        self._open: RowSequence | FirstRows | None = None

    @property
    def micro_batches_per_epoch(self) -> int | None:
        """Micro-batches of one process in a whole epoch."""
        return None if self.steps_per_epoch is None else self.steps_per_epoch * self.accumulate

    @property
    def _end_of_text(self) -> int | None:
        return self.stream.end_of_text if self.separate else None

    @property
    def _done_rows(self) -> int:
        return 0 if self.mark is None else self.mark.rows

    def _left_in_epoch(self) -> int | None:
        if self.micro_batches_per_epoch is None or not self.ends:
            return None
        done = self._done_rows // (self.batch_size * self.world_size)
        return self.micro_batches_per_epoch - done % self.micro_batches_per_epoch

    def __getstate__(self) -> dict[str, Any]:
        # a loader process that is started rather than forked needs the modules of the user's sources and filters
        return {"trusted": TrustedModules(), **vars(self), "_open": None}

    def _sequence(self) -> RowSequence | FirstRows:
        """The open sequence if it is at the mark (as when the next epoch starts), else a new one."""
        if self._open is None or self._open.rows != self._done_rows:
            cursor = None if self.mark is None else self.mark.cursor()
            if self.repeated_rows is None:
                self._open = self.stream.open(cursor)
            else:
                self._open = FirstRows(self.stream, self.repeated_rows, cursor)
        return self._open

    def __iter__(self) -> Iterator[Batch]:
        worker = get_worker_info()
        first, workers = (worker.id, worker.num_workers) if worker else (0, 1)
        sequence, left = self._sequence(), self._left_in_epoch()
        total, begin = self.batch_size * self.world_size, self.rank * self.batch_size
        for number in count() if left is None else range(left):
            if number % workers != first:
                sequence.skip(total)
                continue
            rows = sequence.take_share(total, begin, begin + self.batch_size)
            batch = batch_of_rows(rows, self._end_of_text)
            if isinstance(self.stream, LaneStream):
                batch["starts"] = starts_of(rows, self.stream.end_of_text)
            batch["mark"] = sequence.mark()
            yield batch


class SizedTrainBatches(TrainBatches):
    """Training batches of an epoch of known length. ``len`` is that of a whole epoch, even after a resume."""

    def __len__(self) -> int:
        assert self.micro_batches_per_epoch is not None
        return self.micro_batches_per_epoch


class EvalRows(IterableDataset[Batch]):
    """The rows of a validation or test split in batches; process r takes the r-th ``batch_size`` rows of each.

    Args:
        inputs: Inputs of all processes, ``(rows, block_size)``; rows must be a multiple of
            ``batch_size × world_size``.
        targets: Targets of the same shape; :data:`~lightning_gpt.models.head.IGNORED` where none counts.
        batch_size: Rows per process and batch.
        rank: Index of this process.
        world_size: Number of processes.
        end_of_text: The id that ends each document, if documents are to be separated.
        starts: With lanes: which rows begin a document, ``(rows,)`` bool.
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
        """The targets of all processes, ``(rows, block_size)``, including ignored ones."""
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
    """A validation or test split in which each token after the first is predicted exactly once over all processes.

    The last target of a row is the first input of the next. Rows added to give every process an equal share have
    :data:`~lightning_gpt.models.head.IGNORED` targets.

    Args:
        tokens: The split, ``(tokens,)`` int64.
        block_size: Inputs per row.
        batch_size: Rows per process and batch.
        rank: Index of this process.
        world_size: Number of processes.
        end_of_text: The id that ends each document, if documents are to be separated.
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
    """A validation or test split as lanes, so that a model can remember each document from its beginning.

    Every token is predicted exactly once over all processes, the first of a document from an ``<|endoftext|>`` before
    it. Row r of a batch continues where row r of the previous batch stopped.

    Args:
        documents: The documents of the split, each ending with ``<|endoftext|>``.
        block_size: Inputs per row.
        batch_size: Rows per process and batch.
        rank: Index of this process.
        world_size: Number of processes.
        end_of_text: The id of ``<|endoftext|>``.
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
