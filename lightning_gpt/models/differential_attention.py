"""Attention as the difference of two softmaxes."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_gpt.errors import CallError
from lightning_gpt.models.attention import Backend, MultiHeadAttention, Sight, attentions, scaled_scores
from lightning_gpt.models.context import Context
from lightning_gpt.models.norms import norms
from lightning_gpt.models.positions import Positions, RotaryPositions
from lightning_gpt.models.registry import Choice


@attentions.register("differential")
class DifferentialAttention(MultiHeadAttention):
    """``(softmax(Q₁K₁ᵀ/√d) − λ softmax(Q₂K₂ᵀ/√d)) V``: Ye et al. 2024 (2410.05258), eq. 1, what both see is taken off.

    A head of width 2d has queries and keys of two halves of width d, and values of width 2d, so a layer has the weights
    of plain attention with as many heads, and a few more. ``λ = e^(λ_q1·λ_k1) − e^(λ_q2·λ_k2) + λ_init`` with
    ``λ_init = 0.8 − 0.6 e^(−0.3 layer)``, layers from 0 (eq. 2 and section 2.1); each head's output goes through an
    RMSNorm of its own times ``1 − λ_init`` (eq. 3).

    Intermediates: ``pattern`` is the difference, so its rows sum to 1 − λ and entries may be negative; ``scores`` are
    those of the first softmax, ``second_scores`` those of the one that is taken off. By the formula, dropout drops
    entries of the difference; the kernel drops those of each softmax.

    Args:
        dim: Width of the residual stream.
        n_head: Number of heads, of an even width; a multiple of 4 with rotary positions.
        bias: Whether the projections have a bias.
        dropout: Probability of dropping an attention weight while training.
        backend: How the attention itself is computed.
        layer: Which layer this is, from 0.
        positions: How the model knows where a token stands.
        qk_norm: The norm of each half of the queries and keys.
        n_kv_head: Number of key and value heads; all when None.
    """

    def __init__(
        self,
        dim: int,
        n_head: int,
        *,
        bias: bool,
        dropout: float,
        backend: Backend,
        layer: int,
        positions: Positions,
        qk_norm: Choice = "none",
        n_kv_head: int | None = None,
    ) -> None:
        super().__init__(dim, n_head, bias=bias, dropout=dropout, backend=backend, qk_norm=qk_norm, n_kv_head=n_kv_head)
        multiple = 4 if isinstance(positions, RotaryPositions) else 2
        if self.head_dim % multiple:
            turned = " and rotary positions turn pairs of each half's dimensions" if multiple == 4 else ""
            raise CallError(
                f"attention differential halves its heads{turned}, and dim / n_head is {self.head_dim}; "
                f"it must be a multiple of {multiple}"
            )
        self.half_dim = self.head_dim // 2
        self.q_norm = norms.make(qk_norm, dim=self.half_dim, bias=False)
        self.k_norm = norms.make(qk_norm, dim=self.half_dim, bias=False)
        self.initial = 0.8 - 0.6 * math.exp(-0.3 * layer)
        self.first_q, self.first_k, self.second_q, self.second_k = (
            nn.Parameter(0.1 * torch.randn(self.half_dim)) for _ in range(4)
        )
        self.head_norm = nn.RMSNorm(self.head_dim, eps=1e-5)

    @property
    def factor(self) -> Tensor:
        """λ, one number."""
        first, second = (self.first_q * self.first_k).sum(), (self.second_q * self.second_k).sum()
        return first.exp() - second.exp() + self.initial

    def heads(self, x: Tensor, context: Context) -> tuple[Tensor, Tensor, Tensor]:
        """Queries and keys with their two halves side by side, and values: each ``(batch, heads, time, head_dim)``."""
        batch, time, _ = x.shape
        qkv = self.qkv(x).view(batch, time, -1, self.head_dim).transpose(1, 2)  # (B, H + 2·H_kv, T, 2d)
        q, k, v = qkv.split([self.n_head, self.n_kv_head, self.n_kv_head], dim=1)
        q = torch.cat([context.turn(self.q_norm(half)) for half in q.chunk(2, dim=-1)], dim=-1)
        k = torch.cat([context.turn(self.k_norm(half)) for half in k.chunk(2, dim=-1)], dim=-1)
        return q, k, v

    def _pattern(self, q: Tensor, k: Tensor, sight: Sight) -> Tensor:
        mask = sight.mask(self)
        mask = self.see("mask", sight.all_before() if mask is None else mask)
        bias, patterns = sight.bias(), []
        for name, queries, keys in zip(("scores", "second_scores"), q.chunk(2, -1), k.chunk(2, -1), strict=True):
            scores = scaled_scores(queries, keys)
            patterns.append(self._weights(self.see(name, scores if bias is None else scores + bias), mask))
        return self.see("pattern", patterns[0] - self.factor * patterns[1])  # (B, H, T, T)

    def _kernel(self, q: Tensor, k: Tensor, v: Tensor, sight: Sight, dropout: float) -> Tensor:
        """The kernel wants queries as wide as values: a half is filled with 0, and scaled as if it were not."""
        first, second = (
            super(DifferentialAttention, self)._kernel(
                F.pad(queries * math.sqrt(2), (0, self.half_dim)), F.pad(keys, (0, self.half_dim)), v, sight, dropout
            )
            for queries, keys in zip(q.chunk(2, -1), k.chunk(2, -1), strict=True)
        )
        return first - self.factor * second

    def joined(self, mixed: Tensor) -> Tensor:
        """Each head normed, then side by side and through the output projection: ``(batch, time, dim)``."""
        return super().joined(self.head_norm(mixed) * (1 - self.initial))
