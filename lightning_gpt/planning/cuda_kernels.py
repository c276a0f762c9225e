"""Kernels of a GPU in a trace, which runs on tensors of the CPU: they keep other things for the backward pass."""

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from lightning_gpt.models.attention.formula import CausalAttention
from lightning_gpt.models.norms import RMSNorm


def use_cuda_kernels(model: nn.Module) -> None:
    """Make a model of fake tensors allocate what it would on a CUDA device."""
    for part in model.modules():
        if isinstance(part, RMSNorm):
            part.forward = partial(_fused_norm, part)  # type: ignore[method-assign]
        if isinstance(part, CausalAttention):
            part.by_blocks = False


def _fused_norm(norm: RMSNorm, x: Tensor) -> Tensor:
    """RMSNorm as GPUs compute it, in one kernel that keeps its input; the CPU's keeps two products as well."""
    assert norm.weight is not None
    return _KeepsInput.apply(x, norm.weight.to(x.dtype))  # type: ignore[no-any-return, no-untyped-call]


class _KeepsInput(torch.autograd.Function):
    """What a fused norm allocates: its output, its input kept, a number a row."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, x.new_empty(*x.shape[:-1], 1, dtype=torch.float32), weight)
        return torch.empty_like(x)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        x, _, weight = ctx.saved_tensors
        return torch.empty_like(x), torch.empty_like(weight)
