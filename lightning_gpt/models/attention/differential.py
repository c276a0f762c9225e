"""Attention as the difference of two softmaxes."""

import math
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_gpt.errors import CallError
from lightning_gpt.models.attention.formula import scaled_scores
from lightning_gpt.models.attention.head_matrices import HeadMatrices
from lightning_gpt.models.attention.mask import AttentionMask
from lightning_gpt.models.attention.mixer import attentions
from lightning_gpt.models.attention.multi_head import MultiHeadAttention
from lightning_gpt.models.context import Context
from lightning_gpt.models.layer import Cut
from lightning_gpt.models.norms import norms
from lightning_gpt.models.positions.scheme import Positions
from lightning_gpt.models.registry import Given
from lightning_gpt.options import NotNegative


@attentions.register("differential")
class DifferentialAttention(MultiHeadAttention):
    """``(softmax(Q₁K₁ᵀ/√d) − λ softmax(Q₂K₂ᵀ/√d)) V``: Ye et al. 2024 (2410.05258), eq. 1.

    The difference cancels attention that both softmaxes share. A head of width 2d has two queries and two keys of width
    d, and values of width 2d, so a layer has as many weights as plain attention with the same number of heads, plus a
    few. ``λ = e^(λ_q1·λ_k1) − e^(λ_q2·λ_k2) + λ_init`` with ``λ_init = 0.8 − 0.6 e^(−0.3 layer)``, layers counted from
    0 (eq. 2 and section 2.1). Each head's output goes through its own RMSNorm and is multiplied by ``1 − λ_init`` (eq.
    3).

    Intermediates: ``pattern`` is the difference, so its rows sum to 1 − λ and entries may be negative; ``scores`` are
    those of the first softmax, ``second_scores`` those of the subtracted one. With ``manual``, dropout drops entries of
    the difference; the fused kernel drops those of each softmax.

    Args:
        layer: The layer's index, from 0.
        positions: The position scheme.
        qk_norm: The norm of each half of the queries and keys.
        head_gain: Whether the norm of a head's output has gains.
        head_eps: Its ε.
        shared: As in :class:`~lightning_gpt.models.attention.multi_head.MultiHeadAttention`; the head width must be
            even, and half of it one that a rotary scheme can rotate.
    """

    def __init__(
        self,
        *,
        layer: int,
        positions: Positions,
        qk_norm: Given = "none",
        head_gain: bool = True,
        head_eps: NotNegative = 1e-5,
        **shared: Any,
    ) -> None:
        super().__init__(qk_norm=qk_norm, positions=positions, **shared)
        if self.head_dim % 2:
            raise CallError(
                f"attention differential halves its heads, and a head is {self.head_dim} wide; use an even width"
            )
        self.half_dim = self.head_dim // 2
        (self.rotary or positions).check_width(self.half_dim, "half a head's width")
        self.score_width = self.score_width or self.half_dim
        self.q_norm = norms.make(qk_norm, dim=self.half_dim, bias=False)
        self.k_norm = norms.make(qk_norm, dim=self.half_dim, bias=False)
        self.initial = 0.8 - 0.6 * math.exp(-0.3 * layer)
        self.first_q, self.first_k, self.second_q, self.second_k = (
            nn.Parameter(torch.empty(self.half_dim)) for _ in range(4)
        )
        self.head_norm = nn.RMSNorm(self.head_dim, eps=head_eps, elementwise_affine=head_gain)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """The four vectors of λ ~ N(0, 0.1²), as in the paper's code."""
        for vector in (self.first_q, self.first_k, self.second_q, self.second_k):
            with torch.no_grad():
                vector.normal_().mul_(0.1)

    def cut(self) -> Cut | None:
        cut, more = super().cut(), ("first_q", "first_k", "second_q", "second_k", "head_norm")
        return None if cut is None else replace(cut, whole=(*cut.whole, *more))

    def head_matrices(self) -> HeadMatrices:
        no_qk, no_ov = "each head has two queries and two keys", "it norms each head's output before W_O"
        return replace(super().head_matrices(), no_qk=no_qk, no_ov=no_ov)

    def value_output(self) -> None:
        """None: each head's output is normed, so what it writes is not linear in what it mixes."""

    @property
    def factor(self) -> Tensor:
        """λ, a scalar."""
        first, second = (self.first_q * self.first_k).sum(), (self.second_q * self.second_k).sum()
        return first.exp() - second.exp() + self.initial

    def place(self, x: Tensor, norm: nn.Module, context: Context) -> Tensor:
        """Queries or keys; each of the two halves is normed and rotated separately."""
        return torch.cat([super(DifferentialAttention, self).place(h, norm, context) for h in x.chunk(2, -1)], dim=-1)

    def scores_to_bound(self, q: Tensor, k: Tensor) -> Tensor:
        """The larger ones of the two halves."""
        halves = zip(q.chunk(2, -1), k.chunk(2, -1), strict=True)
        return torch.maximum(*(scaled_scores(queries, keys, self.score_width) for queries, keys in halves))

    def _pattern(self, q: Tensor, k: Tensor, mask: AttentionMask) -> Tensor:
        seen = self.see("mask", mask.as_matrix())
        first, second = (
            self._weights(self._scores(name, queries, keys, mask), seen)
            for name, queries, keys in zip(("scores", "second_scores"), q.chunk(2, -1), k.chunk(2, -1), strict=True)
        )
        return self.see("pattern", first - self.factor * second)  # (B, H, T, T)

    def _kernel(self, q: Tensor, k: Tensor, v: Tensor, mask: AttentionMask, dropout: float) -> Tensor:
        """The kernel needs queries as wide as values, so each half is zero-padded."""
        first, second = (
            super(DifferentialAttention, self)._kernel(
                F.pad(queries, (0, self.half_dim)), F.pad(keys, (0, self.half_dim)), v, mask, dropout
            )
            for queries, keys in zip(q.chunk(2, -1), k.chunk(2, -1), strict=True)
        )
        return first - self.factor * second

    def merge_heads(self, mixed: Tensor) -> Tensor:
        """Norm each head, concatenate the heads and apply the output projection: ``(batch, time, dim)``."""
        return super().merge_heads(self.head_norm(mixed) * (1 - self.initial))
