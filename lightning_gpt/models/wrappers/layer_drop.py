"""Skipping random blocks in training steps.

A skipped block passes the stream on unchanged. Its parameters get zero gradients, so that in data-parallel training
every process has a gradient for every parameter, whichever blocks it skipped.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from lightning_gpt.models.context import Context
from lightning_gpt.models.registry import Registry
from lightning_gpt.models.wrappers.checkpointing import Runner
from lightning_gpt.options import ShareBelowOne

layer_drops: Registry["LayerDrop"] = Registry("layer_drop", "n_layer", optional=True)


@layer_drops.register("constant")
class LayerDrop:
    """Skips each block with the same probability: LayerDrop, Fan et al. 2019 (1909.11556), section 3.2.

    In evaluation all blocks run, unscaled. A model trained this way can be pruned at evaluation, which is the paper's
    purpose.

    Args:
        rate: The probability; the paper uses 0.2.
    """

    scales_updates = False
    """Whether it scales what a block adds to the stream, so that the block must add something."""

    def __init__(self, rate: ShareBelowOne) -> None:
        self._rate = rate

    def rate(self, layer: int) -> float:
        """The probability that a training step skips ``layer``, counted from 0; the same for all layers."""
        return self._rate

    def kept(self, before: Tensor, after: Tensor, rate: float) -> Tensor:
        """The stream after a block that could have been skipped but was not."""
        return after


@layer_drops.register("linear")
class StochasticDepth(LayerDrop):
    """Skips layer ℓ of L, counted from 1, with probability ``ℓ/L · rate``: Huang et al. 2016 (1603.09382), eq. 4.

    In evaluation the paper multiplies a block's update by its survival probability (eq. 5). Here a kept block's update
    is divided by that probability in training instead, which gives the same expected stream and leaves evaluation
    unchanged.

    Args:
        rate: The last layer's probability; the paper uses 0.5.
        n_layer: L.
    """

    scales_updates = True

    def __init__(self, rate: ShareBelowOne, n_layer: int) -> None:
        super().__init__(rate)
        self.n_layer = n_layer

    def rate(self, layer: int) -> float:
        """The probability for ``layer``, counted from 0; it grows with depth."""
        return self._rate * (layer + 1) / self.n_layer

    def kept(self, before: Tensor, after: Tensor, rate: float) -> Tensor:
        """The stream with the block's update divided by its survival probability."""
        return before + (after - before) / (1 - rate)


@dataclass(frozen=True)
class DroppedAtTimes:
    """A layer that a training step may skip.

    Args:
        run: Runs the layer.
        block: The block that holds its weights.
        layer: Its index, from 0.
        drop: Determines how often it is skipped.
    """

    run: Runner
    block: nn.Module
    layer: int
    drop: LayerDrop

    def __call__(self, x: Tensor, context: Context) -> Tensor:
        """The stream ``(batch, time, dim)`` after the layer; unchanged if the layer is skipped.

        For a layer that may be skipped, one number is drawn from torch's CPU generator, so that a resumed run draws the
        same numbers and no accelerator has to be synchronised.
        """
        rate = self.drop.rate(self.layer) if self.block.training else 0.0
        if rate == 0:
            return self.run(x, context)
        if float(torch.rand((), device="cpu")) >= rate:
            return self.drop.kept(x, self.run(x, context), rate)
        if not torch.is_grad_enabled():
            return x
        weights = [weight for weight in self.block.parameters() if weight.requires_grad]
        if any(isinstance(weight, DTensor) for weight in weights):  # gathering needs every process
            return x + 0 * self.run(x, context)
        nothing = sum((0 * weight.sum() for weight in weights), torch.zeros((), device=x.device))
        return x + nothing.to(x.dtype)
