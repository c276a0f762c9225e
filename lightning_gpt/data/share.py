"""Which rows of an optimizer step a process reads: its share among the processes, and the micro-batches of the step."""

from dataclasses import dataclass

import lightning as L

from lightning_gpt.errors import CallError


def data_place(trainer: L.Trainer | None) -> tuple[int, int]:
    """Which share of the rows this process reads, and how many shares there are: ``(rank, size)``.

    The strategy knows: processes that hold parts of one copy of a model read the same rows, so there may be fewer
    shares than processes.
    """
    sampler = None if trainer is None else trainer.distributed_sampler_kwargs
    return (0, 1) if sampler is None else (int(sampler["rank"]), int(sampler["num_replicas"]))


@dataclass(frozen=True)
class Share:
    """One process's share of each optimizer step.

    Args:
        rank: Which share of the rows it reads.
        size: How many shares there are.
        batch_size: Its rows of a micro-batch.
        accumulated: Micro-batches per optimizer step.
    """

    rank: int
    size: int
    batch_size: int
    accumulated: int

    @property
    def micro_batch_rows(self) -> int:
        """Rows of a micro-batch over all shares."""
        return self.batch_size * self.size

    @property
    def step_rows(self) -> int:
        """Rows of an optimizer step over all shares."""
        return self.micro_batch_rows * self.accumulated

    def described(self) -> str:
        """What the rows of a step are made of, in words."""
        return f"{_micro_batch(self.batch_size, self.size)} × {self.accumulated} accumulated"


def share_of(trainer: L.Trainer | None, batch_size: int, global_batch: int | None = None) -> Share:
    """This process's share.

    Args:
        trainer: Its strategy knows the place of the process; a single process when None.
        batch_size: Rows per process and micro-batch.
        global_batch: Rows of an optimizer step, which give the number of micro-batches; when None, the trainer's
            ``accumulate_grad_batches`` does.

    Raises:
        CallError: ``global_batch`` is not a whole number of micro-batches.
    """
    rank, size = data_place(trainer)
    if global_batch is not None:
        return Share(rank, size, batch_size, micro_batches(global_batch, batch_size, size))
    return Share(rank, size, batch_size, 1 if trainer is None else trainer.accumulate_grad_batches)


def micro_batches(global_batch: int, batch_size: int, size: int) -> int:
    """Micro-batches of an optimizer step of ``global_batch`` rows, of which ``size`` shares read ``batch_size`` each.

    Raises:
        CallError: The rows do not divide; the message names numbers that do.
    """
    rows = batch_size * size
    if global_batch % rows == 0:
        return global_batch // rows
    below = global_batch - global_batch % rows
    works = [f"global_batch {' or '.join(str(each) for each in (below, below + rows) if each)}"]
    if global_batch % size == 0:
        own = global_batch // size
        works.append(f"batch_size {next(each for each in range(min(own, batch_size), 0, -1) if own % each == 0)}")
    raise CallError(
        f"data.global_batch is {global_batch} rows, but a micro-batch has {rows} ({_micro_batch(batch_size, size)}), "
        f"which does not divide it: use {', or '.join(works)}"
    )


def _micro_batch(batch_size: int, size: int) -> str:
    """What the rows of a micro-batch are made of, in words."""
    return f"batch_size {batch_size} × {size} process{'es' * (size > 1)}"


def global_batch_share(trainer: L.Trainer, batch_size: int, global_batch: int) -> Share:
    """This process's share of optimizer steps of ``global_batch`` rows.

    Raises:
        CallError: They are not a whole number of micro-batches, or ``accumulate_grad_batches`` was given, too.
    """
    share, given = share_of(trainer, batch_size, global_batch), trainer.accumulate_grad_batches
    if given != 1:
        raise CallError(
            f"data.global_batch {global_batch} and trainer.accumulate_grad_batches {given} cannot both be given: leave "
            f"accumulate_grad_batches out; it follows from the other, here {share.accumulated}"
        )
    return share


def hold_global_batch(trainer: L.Trainer, batch_size: int, global_batch: int) -> None:
    """Set the trainer's ``accumulate_grad_batches`` to what follows from ``global_batch``."""
    trainer.accumulate_grad_batches = global_batch_share(trainer, batch_size, global_batch).accumulated
