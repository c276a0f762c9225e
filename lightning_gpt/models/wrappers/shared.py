"""One block that serves several layers, recorded under each layer's name."""

from dataclasses import dataclass

from torch import Tensor, nn

from lightning_gpt.models.context import Context
from lightning_gpt.models.layer import Layer
from lightning_gpt.models.record import called


@dataclass(frozen=True)
class NamedLayer:
    """Runs a shared block; its intermediates are recorded under the layer's name.

    Args:
        model: The model that contains the block.
        block: The block.
        layer: The index of the layer it serves, from 0.
    """

    model: Layer
    block: nn.Module
    layer: int

    @property
    def training(self) -> bool:
        """Whether the block is in training mode."""
        return self.block.training

    def __call__(self, x: Tensor, context: Context) -> Tensor:
        """Run the block: the stream ``(batch, time, dim)`` to the same shape."""
        if self.model._watch is not None:
            called(self.block, f"{self.model._prefix}blocks.{self.layer}")
        return self.block(x, context)  # type: ignore[no-any-return]
