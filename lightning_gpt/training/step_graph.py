"""A micro-batch's loss and gradients as one CUDA graph: a small model's step without the time to launch its kernels."""

from collections.abc import Hashable
from typing import Any

import torch
from torch import Tensor

from lightning_gpt.models import graph
from lightning_gpt.models.base import LanguageModel

GRAPHED_TOKENS = 65_536
"""Micro-batches of more tokens keep a device busy by themselves; the graph holds the activations of its pass."""


class StepGraph:
    """Computes a model's training loss by replaying a graph of its forward and backward pass.

    The first micro-batch of each shape is captured. Random numbers follow the generator's seed in a replay as they do
    outside of one.

    Args:
        model: The model, on its device; weights are changed in place only.
        most_tokens: Larger micro-batches run as they are.
    """

    def __init__(self, model: LanguageModel, most_tokens: int = GRAPHED_TOKENS) -> None:
        self._model, self._most_tokens = model, most_tokens
        self._captured: dict[Hashable, _Captured] = {}

    def loss(self, ids: Tensor, targets: Tensor, documents: Tensor | None, *, z_loss: float) -> Tensor:
        """:meth:`~lightning_gpt.models.base.LanguageModel.loss` of a micro-batch, with gradients for ``backward``."""
        model = self._model
        watched = model._watch is not None
        if watched or not torch.is_grad_enabled() or not model.training or ids.numel() > self._most_tokens:
            return model.loss(ids, targets, documents, z_loss=z_loss)
        inputs = [tensor for tensor in (ids, targets, documents) if tensor is not None]
        key = *(tensor.shape for tensor in inputs), z_loss, torch.is_autocast_enabled(ids.device.type)
        if key not in self._captured:
            self._captured[key] = _Captured(model, inputs, z_loss)
        captured = self._captured[key]
        captured.take(inputs)
        loss: Tensor = _Replayed.apply(captured, *captured.parameters)  # type: ignore[no-untyped-call]
        return loss


class _Captured:
    """The graph of micro-batches of one shape, with the tensors it reads and writes."""

    def __init__(self, model: LanguageModel, inputs: list[Tensor], z_loss: float) -> None:
        self._model, self._z_loss = model, z_loss
        self._inputs = [tensor.clone() for tensor in inputs]
        self.parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.replay, (self.loss, self.gradients) = graph.capture(self._run, inputs[0].device)

    def take(self, inputs: list[Tensor]) -> None:
        """Put a micro-batch where the graph reads it."""
        for place, tensor in zip(self._inputs, inputs, strict=True):
            place.copy_(tensor)

    def _run(self) -> tuple[Tensor, list[Tensor | None]]:
        with torch.enable_grad():
            loss = self._model.loss(*self._inputs, z_loss=self._z_loss)
            gradients = torch.autograd.grad(loss, self.parameters, allow_unused=True)
        return loss.detach(), list(gradients)


class _Replayed(torch.autograd.Function):
    """The loss of the micro-batch that was put in place; its gradients are computed by the same replay."""

    @staticmethod
    def forward(ctx: Any, captured: _Captured, *parameters: Tensor) -> Tensor:
        captured.replay()
        ctx.captured = captured
        return captured.loss.clone()

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        gradients = ctx.captured.gradients
        found = [gradient for gradient in gradients if gradient is not None]
        # new tensors, because gradients of several micro-batches are added up and the next replay overwrites these
        scaled = iter(torch._foreach_mul(found, grad_outputs[0]))
        return None, *(None if gradient is None else next(scaled) for gradient in gradients)
