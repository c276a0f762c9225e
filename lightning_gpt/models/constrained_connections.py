"""Hyper-connections that neither amplify nor cancel: the copies are mixed by doubly stochastic matrices."""

import math
from collections.abc import Callable, Iterator
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_gpt.models.attention.mixer import Mixer
from lightning_gpt.models.block import blocks
from lightning_gpt.models.hyper_connections import Connection, Copies, ManyStreams
from lightning_gpt.models.layer import Layer, Matrix
from lightning_gpt.options import Range

_KEPT = 4.0  # bias of a copy's weight on itself: with four copies it starts at 0.95


class ConstrainedConnection(Connection):
    """``r = σ(α₁ x̂ φ₁ + b₁)``, ``w = 2σ(α₂ x̂ φ₂ + b₂)``, ``R = Sinkhorn(α₃ x̂ φ₃ + b₃)``; x̂ all copies over their RMS.

    Args:
        dim: Width of a copy.
        n_stream: Number of copies, n.
        steps: Sinkhorn's iterations.
        eps: ε of the RMS.
    """

    def __init__(self, dim: int, n_stream: int, steps: int, eps: float = 1e-6) -> None:
        super().__init__(dim, n_stream)
        self.steps, self.eps = steps, eps
        self.pieces = {"read": n_stream, "write": n_stream, "residual": n_stream**2}
        self.weight = nn.Parameter(torch.empty(sum(self.pieces.values()), n_stream * dim))
        self.bias = nn.Parameter(torch.empty(sum(self.pieces.values())))
        self.scales = nn.Parameter(torch.empty(3))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """``φ ~ N(0, 0.02²)``, ``α = 0.01``; biases at which r is 1/n, w is 1 and R near the identity."""
        nn.init.normal_(self.weight, std=0.02)
        nn.init.constant_(self.scales, 0.01)
        read, write, residual = torch.split(self.bias, list(self.pieces.values()))
        # σ(b) = 1/n; a single copy is read nearly whole
        read.fill_(-math.log(self.n_stream - 1) if self.n_stream > 1 else _KEPT)
        write.zero_()
        residual.copy_(_KEPT * torch.eye(self.n_stream).flatten())

    def matrices(self) -> Iterator[Matrix]:
        yield Matrix(self.weight, "stream", "score", self.pieces, self.bias)

    def flops(self, positions: Tensor) -> float:
        return self.mixing_flops() + 2.0 * self.weight.numel()

    def coefficients(self, copies: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        n, dtype = self.n_stream, copies.dtype
        normed = F.rms_norm(copies.flatten(-2), (n * self.dim,), eps=self.eps)
        sizes = list(self.pieces.values())
        scales = torch.cat([scale.expand(size) for scale, size in zip(self.scales, sizes, strict=True)])
        found = scales.to(dtype) * F.linear(normed, self.weight.to(dtype)) + self.bias.to(dtype)
        read, write, residual = torch.split(found, sizes, dim=-1)
        mixing: Tensor = _Sinkhorn.apply(torch.unflatten(residual, -1, (n, n)), self.steps)  # type: ignore[no-untyped-call]
        return read.sigmoid(), mixing, 2 * write.sigmoid()


class _Sinkhorn(torch.autograd.Function):
    """``exp(logits)`` ``(..., n, n)`` with its columns, then its rows, divided by their sums, ``steps`` times.

    Only the logits are kept for the backward pass, which repeats the divisions: they are many, and each is small.
    Tokens are the last dimension inside, so that sums over n run along whole vectors.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, steps: int) -> Tensor:
        ctx.save_for_backward(logits)
        ctx.steps = steps
        matrix = _start(logits)
        for _ in range(steps):
            for dim in (0, 1):  # over the rows of a column, then over the columns of a row
                matrix = matrix / matrix.sum(dim=dim, keepdim=True)
        return _tokens_first(matrix, logits)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None]:
        (logits,) = ctx.saved_tensors
        matrix, passed = _start(logits), []
        start = matrix
        for _ in range(ctx.steps):
            for dim in (0, 1):
                total = matrix.sum(dim=dim, keepdim=True)
                matrix = matrix / total
                passed.append((matrix, total, dim))
        gradient = _tokens_last(grad_outputs[0])
        for matrix, total, dim in reversed(passed):
            gradient = (gradient - (gradient * matrix).sum(dim=dim, keepdim=True)) / total
        return _tokens_first(gradient * start, logits), None


def _start(logits: Tensor) -> Tensor:
    """``exp(logits)`` ``(n, n, tokens)``; a factor of the whole matrix changes nothing, so the largest entry is 1."""
    return _tokens_last(logits - logits.amax(dim=(-2, -1), keepdim=True)).exp()


def _tokens_last(x: Tensor) -> Tensor:
    return x.flatten(0, -3).permute(1, 2, 0).contiguous()


def _tokens_first(x: Tensor, like: Tensor) -> Tensor:
    return x.permute(2, 0, 1).reshape(like.shape)


@blocks.register("constrained_hyper_connections")
class ConstrainedHyperConnections(ManyStreams):
    """``H ← R H + wᵀ F(LN(r H))``, H n copies of the stream, R doubly stochastic, r and w positive: mHC.

    Xie et al. 2025, "mHC: Manifold-Constrained Hyper-Connections" (2512.24880), eq. 3 and 7 to 9. R comes from
    alternately dividing columns and rows by their sums (Sinkhorn & Knopp 1967), so its rows add up to 1 exactly and its
    columns nearly. The paper gives the starts of the factors α alone (0.01); here the biases start so that a branch
    reads the copies' mean, adds to each once, and each keeps nearly all of itself.

    Args:
        attention: The first branch.
        ffn: The second branch.
        norm: Creates a norm.
        dim: Width of a copy.
        dropout: As in the block.
        layer: The layer's number, from 0.
        n_stream: n, the paper's expansion rate.
        steps: How often columns and rows are divided by their sums.
    """

    def __init__(
        self,
        attention: Mixer,
        ffn: Layer | None,
        norm: Callable[[], nn.Module],
        dim: int,
        dropout: float,
        layer: int,
        n_stream: Copies = 4,
        steps: Annotated[int, Range(1, 100)] = 20,
    ) -> None:
        def connect(site: int) -> Connection:
            return ConstrainedConnection(dim, n_stream, steps)

        super().__init__(attention, ffn, norm, dropout, connect, n_stream, layer)
