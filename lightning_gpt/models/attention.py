"""Causal self-attention: the formula, the fast kernel beside it, and the multi-head layer over both.

Vaswani et al. 2017, "Attention Is All You Need" (1706.03762), eq. 1: ``softmax(Q Kᵀ / √d) V``,
here with the causal mask ``S_ij = −∞ for j > i`` of its section 3.2.3.
"""

import math
from collections.abc import Callable
from functools import cache
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from lightning_gpt.models.watch import Watched

Backend = Literal["sdpa", "manual"]
"""``sdpa``: torch's fused kernel, no ``time × time`` matrix is held. ``manual``: the formula, step by step."""


def causal_mask(time: int, device: torch.device | None = None) -> Tensor:
    """``(time, time)`` booleans: row i may attend to column j where ``j <= i``."""
    return torch.ones(time, time, dtype=torch.bool, device=device).tril()


def document_mask(documents: Tensor) -> Tensor:
    """The causal mask that also keeps documents apart: their numbers ``(batch, time)`` to ``(batch, time, time)``."""
    same = documents[:, :, None] == documents[:, None, :]
    return same & causal_mask(documents.shape[1], documents.device)


def document_block_mask(documents: Tensor) -> BlockMask:
    """The same for ``flex_attention``, which skips whole blocks that are hidden and holds no ``time × time`` matrix."""

    def visible(batch: Tensor, _head: Tensor, row: Tensor, column: Tensor) -> Tensor:
        return (row >= column) & (documents[batch, row] == documents[batch, column])

    batch, time = documents.shape
    return create_block_mask(visible, batch, None, time, time, device=str(documents.device))


Mask = Tensor | BlockMask
"""Which columns a row may attend to, where that is more than causality: booleans, or blocks for ``flex_attention``."""


def scaled_scores(q: Tensor, k: Tensor) -> Tensor:
    """``Q Kᵀ / √d`` before any mask: ``(..., time, head_dim)`` twice to ``(..., time, time)``."""
    return q @ k.mT / math.sqrt(q.shape[-1])


def attention_pattern(scores: Tensor, mask: Tensor) -> Tensor:
    """Softmax over the allowed positions of each row: rows sum to 1, and are 0 where the mask is false."""
    return scores.masked_fill(~mask, -torch.inf).softmax(dim=-1)


@cache
def _compiled_flex_attention() -> Callable[..., Tensor]:
    """``flex_attention`` is a kernel only when compiled; made when first used, because compiling takes seconds."""
    compiled: Callable[..., Tensor] = torch.compile(flex_attention)
    return compiled


class CausalAttention(Watched):
    """What every attention layer shares: ``softmax(mask(Q Kᵀ / √d)) V`` by either backend.

    Intermediates: ``mask``, ``scores`` (scaled, before the mask), ``pattern`` (the softmax) and
    ``head_output`` (``pattern @ v``). The fused kernel never makes the first three, so a layer that is
    asked for one of them computes that pass by the formula: what is shown is what was used.
    """

    def __init__(self, backend: Backend, dropout: float = 0.0) -> None:
        super().__init__()
        self.backend = backend
        self.dropout = dropout

    def attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Mask | None = None) -> Tensor:
        """Mix the values: q, k, v ``(..., time, head_dim)`` to ``(..., time, head_dim)``.

        ``mask`` is for more than causality: booleans that broadcast to ``(..., time, time)``, or a block mask.
        """
        dropout = self.dropout if self.training else 0.0
        if isinstance(mask, BlockMask):
            mixed = _compiled_flex_attention()(q, k, v, block_mask=mask)
        elif self.backend == "manual" or self.asked_for("mask", "scores", "pattern"):
            mask = self.see("mask", causal_mask(q.shape[-2], q.device) if mask is None else mask)  # (..., T, T)
            scores = self.see("scores", scaled_scores(q, k))  # (..., T, T)
            pattern = self.see("pattern", attention_pattern(scores, mask))  # (..., T, T)
            mixed = F.dropout(pattern, dropout) @ v
        else:
            causal = mask is None
            mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout, is_causal=causal)
        return self.see("head_output", mixed)


class MultiHeadAttention(CausalAttention):
    """Multi-head causal self-attention, Vaswani et al. 2017, section 3.2.2, with one product for Q, K and V.

    Intermediates besides those of :class:`CausalAttention`: ``q``, ``k``, ``v`` ``(batch, n_head, time, head_dim)``
    and ``output`` ``(batch, time, dim)``, the mixed heads after the output projection.

    Args:
        dim: Width of the residual stream, a multiple of ``n_head``.
        n_head: Number of heads, each of width ``dim / n_head``.
        bias: Whether the projections have a bias.
        dropout: Probability of dropping an attention weight while training.
        backend: How the attention itself is computed.
    """

    def __init__(self, dim: int, n_head: int, *, bias: bool, dropout: float, backend: Backend) -> None:
        super().__init__(backend, dropout)
        self.n_head = n_head
        self.qkv = nn.Linear(dim, 3 * dim, bias=bias)
        self.projection = nn.Linear(dim, dim, bias=bias)

    def forward(self, x: Tensor, mask: Mask | None = None) -> Tensor:
        """``(batch, time, dim)`` to the same; a ``mask`` ``(batch, time, time)`` holds for all heads."""
        batch, time, dim = x.shape
        if isinstance(mask, Tensor):
            mask = mask[:, None]  # (B, 1, T, T)
        qkv = self.qkv(x).view(batch, time, 3, self.n_head, dim // self.n_head)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # three of (B, H, T, D)
        heads = self.attend(self.see("q", q), self.see("k", k), self.see("v", v), mask)  # (B, H, T, D)
        joined = heads.transpose(1, 2).reshape(batch, time, dim)
        return self.see("output", self.projection(joined))
