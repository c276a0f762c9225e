"""The losses of the micro-batches that an optimizer step is made of."""

import lightning as L
import torch
from torch import Tensor


class StepLosses:
    """Collects this process's losses until the step is about to be taken."""

    def __init__(self) -> None:
        self._losses: list[Tensor] = []

    def add(self, trainer: L.Trainer, loss: Tensor) -> None:
        """Add a micro-batch.

        Args:
            trainer: It has divided the loss by the number of micro-batches, and in fp16 scaled it.
            loss: What ``on_before_backward`` is given.
        """
        loss = loss.detach() * trainer.accumulate_grad_batches
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        # a one that the scaler has scaled is the scale; asking for it as a number would wait for the device
        self._losses.append(loss if scaler is None else loss / scaler.scale(torch.ones_like(loss)))

    def take(self) -> Tensor:
        """The losses ``(micro-batches,)`` in nats, whose mean is the step's; the next step begins without any."""
        losses, self._losses = torch.stack(self._losses), []
        return losses
