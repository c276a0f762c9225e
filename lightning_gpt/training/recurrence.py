"""What a model with memory remembers while it trains and is evaluated: a state for each lane.

With ``data.packing: lanes`` row r of a micro-batch goes on in the document that it read one optimizer step before. An
optimizer step has as many lanes as rows; those of its m-th micro-batch on process r are the lanes
``(m × processes + r) × batch_size`` and on. In a checkpoint the states stand in the order of the lanes, so that a run
resumed with other processes and micro-batches of the same step takes each its own.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from lightning_gpt.data.batches import Batch
from lightning_gpt.models import MemoryGPT
from lightning_gpt.models.memory.base import State

Gather = Callable[[Tensor], Tensor]
"""A tensor of this process to those of all, ``(processes, ...)``."""


class LaneStates:
    """The states of the lanes that one process reads.

    Args:
        model: Whose memory it is.
    """

    def __init__(self, model: MemoryGPT) -> None:
        self.memory = model.memory
        self._like = model.token_embedding.weight
        self._states: dict[int, State] = {}  # by micro-batch of the step

    def clear(self) -> None:
        """Forget all."""
        self._states = {}

    def of(self, batch: Batch, micro_batch: int = 0) -> State:
        """What the rows of ``batch`` go on from; a pass that it is handed to keeps in it what comes next."""
        state = self._states.get(micro_batch)
        if state is None:
            state = self.memory.new_state(len(batch["ids"]), self._like.detach())
        self._states[micro_batch] = state.to(self._like.device).started(batch["starts"])
        return self._states[micro_batch]

    def all(self, gather: Gather) -> dict[str, Tensor]:
        """The states of all processes' lanes, in the order of the lanes; empty before the first step."""
        if not self._states:
            return {}
        own = [vars(self._states[number]) for number in sorted(self._states)]
        stacked = {name: torch.stack([state[name] for state in own]) for name in own[0]}  # (micro, batch, ...)
        return {name: gather(tensor).transpose(0, 1).flatten(0, 2).cpu() for name, tensor in stacked.items()}

    def load(self, states: dict[str, Tensor], micro_batches: int, rank: int, world_size: int) -> None:
        """Take this process's part of the states of all lanes."""
        self.clear()
        own = {
            name: tensor.view(
                micro_batches, world_size, len(tensor) // (micro_batches * world_size), *tensor.shape[1:]
            )[:, rank]
            for name, tensor in states.items()
        }
        for number in range(micro_batches if own else 0):
            self._states[number] = State(**{name: tensor[number] for name, tensor in own.items()})
