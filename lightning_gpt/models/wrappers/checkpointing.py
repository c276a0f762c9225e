"""Activation checkpointing: recompute activations in the backward pass. Chen et al. 2016 (1604.06174)."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from lightning_gpt.models.context import Context

Checkpointing = Literal["none", "block", "attention"]
"""Recompute nothing, whole blocks, or the attention of each block."""

Runner = Callable[[Tensor, Context], Tensor]
"""Runs a block, a branch or a wrapper of one; the stream ``(batch, time, dim)`` keeps its shape."""


class Rerunnable(Protocol):
    """A block, a branch or a wrapper of one, with its training flag."""

    @property
    def training(self) -> bool:
        """Whether it is in training mode."""

    def __call__(self, x: Tensor, context: Context) -> Tensor:
        """Map the stream ``(batch, time, dim)`` to the same shape."""


@dataclass(frozen=True)
class Checkpointed:
    """Runs a part of a model; in training its activations are recomputed, with the same dropout masks.

    Args:
        part: The part to run.
    """

    part: "Rerunnable"

    def __call__(self, x: Tensor, context: Context) -> Tensor:
        """Run the part: the stream ``(batch, time, dim)`` to the same shape."""
        if self.part.training and torch.is_grad_enabled():
            return checkpoint(self.part, x, context, use_reentrant=False)  # type: ignore[no-any-return]
        return self.part(x, context)
