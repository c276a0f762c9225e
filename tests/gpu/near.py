"""How near a model on a device comes to itself in float64 on the CPU."""

import copy
from contextlib import nullcontext

import torch
from torch import Tensor

from lightning_gpt.models import LanguageModel

CUDA = torch.device("cuda")
BOUNDS = {torch.float32: 2e-4, torch.bfloat16: 6e-2, torch.float16: 3e-2}
"""Relative error of loss and gradients by the precision of the products."""


def loss_and_gradient(
    model: LanguageModel, ids: Tensor, documents: Tensor | None = None, dtype: torch.dtype | None = None
) -> tuple[float, Tensor]:
    """The loss and all gradients as one vector in float64 on the CPU; ``dtype`` is autocast's."""
    model.zero_grad()
    with nullcontext() if dtype is None else torch.autocast(ids.device.type, dtype):
        loss = model.loss(ids, ids.roll(-1, 1), documents)
    loss.backward()  # type: ignore[no-untyped-call]
    found = [torch.zeros_like(p) if p.grad is None else p.grad for p in model.parameters()]
    return float(loss), torch.cat([gradient.double().cpu().flatten() for gradient in found])


def errors(
    model: LanguageModel, ids: Tensor, dtype: torch.dtype, documents: Tensor | None = None
) -> tuple[float, float]:
    """Relative errors of loss and gradients on the device in ``dtype`` (autocast's, or fp32)."""
    exact_loss, exact = loss_and_gradient(copy.deepcopy(model).double(), ids, documents)
    cast = None if dtype == torch.float32 else dtype
    there = None if documents is None else documents.to(CUDA)
    loss, found = loss_and_gradient(copy.deepcopy(model).to(CUDA), ids.to(CUDA), there, cast)
    return abs(loss / exact_loss - 1), float((found - exact).norm() / exact.norm())
