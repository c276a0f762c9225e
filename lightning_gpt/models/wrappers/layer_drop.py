"""Blocks that are left out of some training steps.

A block that is left out passes the stream on. Its parameters get the gradient 0, so that every process of data-parallel
training has a gradient for each, whichever blocks it drew.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from lightning_gpt.errors import CallError
from lightning_gpt.models.context import Context
from lightning_gpt.models.registry import Registry
from lightning_gpt.models.wrappers.checkpointing import Runner

layer_drops: Registry["LayerDrop"] = Registry("layer_drop", "n_layer", optional=True)


@layer_drops.register("constant")
class LayerDrop:
    """Each block is left out with the same probability: LayerDrop, Fan et al. 2019 (1909.11556), section 3.2.

    In evaluation all run, unscaled. A model so trained may be cut at evaluation, which is what the paper is for.

    Args:
        rate: The probability; the paper takes 0.2.
    """

    def __init__(self, rate: float) -> None:
        if not 0 <= rate < 1:
            raise CallError(f"layer_drop rate is {rate}; it must be at least 0 and below 1")
        self._rate = rate

    def rate(self, layer: int) -> float:
        """The probability that ``layer``, counted from 0, is left out of a training step: the same for all."""
        return self._rate

    def kept(self, before: Tensor, after: Tensor, rate: float) -> Tensor:
        """The stream after a block that might have been left out and was not."""
        return after


@layer_drops.register("linear")
class StochasticDepth(LayerDrop):
    """Layer ℓ of L, counted from 1, is left out with probability ``ℓ/L · rate``: Huang et al. 2016 (1603.09382), eq. 4.

    The paper multiplies what a block adds by its chance of being kept in evaluation (eq. 5); here what a kept block
    adds is divided by it in training, which gives the same expected stream and leaves evaluation alone.

    Args:
        rate: The last layer's probability; the paper takes 0.5.
        n_layer: L.
    """

    def __init__(self, rate: float, n_layer: int) -> None:
        super().__init__(rate)
        self.n_layer = n_layer

    def rate(self, layer: int) -> float:
        """More the later the layer."""
        return self._rate * (layer + 1) / self.n_layer

    def kept(self, before: Tensor, after: Tensor, rate: float) -> Tensor:
        """What the block added counts for the times that it is left out."""
        return before + (after - before) / (1 - rate)


@dataclass(frozen=True)
class DroppedAtTimes:
    """A layer that a training step may leave out.

    Args:
        run: Runs the layer.
        block: Its weights.
        layer: Its number, from 0.
        drop: Says how often.
    """

    run: Runner
    block: nn.Module
    layer: int
    drop: LayerDrop

    def __call__(self, x: Tensor, context: Context) -> Tensor:
        """The stream ``(batch, time, dim)`` after the layer, or as it was where the layer is left out.

        One number of torch's CPU generator is drawn for a layer that may be left out, so that a resumed run draws the
        same and no accelerator is waited for.
        """
        rate = self.drop.rate(self.layer) if self.block.training else 0.0
        if rate == 0:
            return self.run(x, context)
        if float(torch.rand((), device="cpu")) >= rate:
            return self.drop.kept(x, self.run(x, context), rate)
        if not torch.is_grad_enabled():
            return x
        weights = [weight for weight in self.block.parameters() if weight.requires_grad]
        if any(isinstance(weight, DTensor) for weight in weights):  # all processes must gather what one of them runs
            return x + 0 * self.run(x, context)
        nothing = sum((0 * weight.sum() for weight in weights), torch.zeros((), device=x.device))
        return x + nothing.to(x.dtype)
