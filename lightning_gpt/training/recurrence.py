"""The memory of each lane of text, for a model that carries memory from one row to the next.

With ``data.packing: lanes``, row r of a micro-batch continues the document that row r read one optimizer step earlier.
An optimizer step has as many lanes as rows. Its m-th micro-batch on process r reads lanes
``(m × processes + r) × batch_size`` onwards. A checkpoint stores the states in lane order, so that a run resumed with a
different number of processes or micro-batches per step gives each process the states of its own lanes.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from lightning_gpt.data.batches import Batch
from lightning_gpt.data.datamodule import TextData
from lightning_gpt.data.mark import Mark
from lightning_gpt.errors import CallError
from lightning_gpt.models import MemoryGPT
from lightning_gpt.models.memory.base import State

Gather = Callable[[Tensor], Tensor]
"""Gathers a tensor from all processes, as ``(processes, ...)``."""


class LaneStates:
    """The states of the lanes that one process reads.

    Args:
        model: A model with memory.
    """

    def __init__(self, model: MemoryGPT) -> None:
        self.memory = model.memory
        self._like = model.token_embedding.weight
        self._states: dict[int, State] = {}  # by micro-batch of the step

    def clear(self) -> None:
        """Empty all memory."""
        self._states = {}

    def of(self, batch: Batch, micro_batch: int = 0) -> State:
        """The state that the rows of ``batch`` continue from; a pass that is given it updates it in place."""
        state = self._states.get(micro_batch)
        if state is None:
            state = self.memory.new_state(len(batch["ids"]), self._like.detach())
        self._states[micro_batch] = state.to(self._like.device).started(batch["starts"])
        return self._states[micro_batch]

    def drop_non_finite(self) -> None:
        """Empty the memory of each lane in which a value is not finite; what it reads next starts a new text."""
        for number, state in self._states.items():
            bad = ~state.memory.flatten(1).isfinite().all(dim=1)
            memory = torch.where(bad.view(-1, *[1] * (state.memory.dim() - 1)), 0, state.memory)
            self._states[number] = State(memory, state.ids, state.read.masked_fill(bad, 0))

    def all(self, gather: Gather) -> dict[str, Tensor]:
        """The states of all processes' lanes, in lane order; empty before the first step."""
        if not self._states:
            return {}
        own = [vars(self._states[number]) for number in sorted(self._states)]
        stacked = {name: torch.stack([state[name] for state in own]) for name in own[0]}  # (micro, batch, ...)
        return {name: gather(tensor).transpose(0, 1).flatten(0, 2).cpu() for name, tensor in stacked.items()}

    def load(self, states: dict[str, Tensor], micro_batches: int, rank: int, world_size: int) -> None:
        """Take this process's share of the states of all lanes."""
        self.clear()
        own = {
            name: tensor.view(
                micro_batches, world_size, len(tensor) // (micro_batches * world_size), *tensor.shape[1:]
            )[:, rank]
            for name, tensor in states.items()
        }
        for number in range(micro_batches if own else 0):
            self._states[number] = State(**{name: tensor[number] for name, tensor in own.items()})

    def check(self, data: TextData) -> None:
        """Refuse data from which nothing could be remembered.

        Raises:
            CallError: If rows hold several documents that must not see each other, or if neither the rows nor the
                segments within a row are continued.
        """
        if data.separate_documents:
            raise CallError(
                "memory is carried within a document: set data.packing to lanes instead of separate_documents"
            )
        if data.packing != "lanes" and self.memory.segment == data.block_size:
            raise CallError(
                f"memory is carried from row to row only if data.packing is lanes, and it is {data.packing}: set "
                f"lanes, or set a memory segment below block_size, {data.block_size}, to carry memory within a row"
            )


def lane_states(model: nn.Module) -> LaneStates | None:
    """Empty lane states for ``model``; None for a model without memory."""
    return LaneStates(model) if isinstance(model, MemoryGPT) else None


def remembering(
    lanes: LaneStates | None, batch: Batch, micro_batch: int = 0, row: int | None = None
) -> AbstractContextManager[None]:
    """Inside, the model continues from what the lanes of ``batch`` remember and updates it.

    Does nothing for a model without memory, or for a batch whose rows are not lanes.

    Args:
        lanes: The states, or None for a model without memory.
        batch: The rows about to be read.
        micro_batch: Their micro-batch within the optimizer step.
        row: Read only this row, and leave the states unchanged.
    """
    if lanes is None or "starts" not in batch:
        return nullcontext()
    state = lanes.of(batch, micro_batch)
    return lanes.memory.carried(state if row is None else state.row(row))


def micro_batch_of(mark: Mark, rows: int) -> int:
    """The micro-batch within its optimizer step after which the data stands at ``mark``; 0 if rows are not lanes.

    Args:
        mark: Where the data continues after the micro-batch.
        rows: Rows of a micro-batch over all processes.
    """
    return (mark.rows - rows) % mark.lanes // rows if mark.lanes else 0
