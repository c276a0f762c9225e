"""Causal softmax attention: the formula, and the fused kernel that computes the same.

Vaswani et al. 2017, "Attention Is All You Need" (1706.03762), eq. 1: ``softmax(Q Kᵀ / √d) V``, here with the causal
mask ``S_ij = −∞ for j > i`` of its section 3.2.3.
"""

import math
from collections.abc import Hashable, Sequence
from typing import TYPE_CHECKING, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_gpt.models.attention.blockwise import blockwise_attention, suits_blockwise
from lightning_gpt.models.attention.mask import AttentionMask, compiled_flex_attention
from lightning_gpt.models.attention.mixer import Mixer
from lightning_gpt.models.context import Context
from lightning_gpt.models.kv_cache import LOOKAHEAD, KeyValues, LayerState
from lightning_gpt.models.layer import compute_dtype

if TYPE_CHECKING:
    from lightning_gpt.models.attention.largest_scores import LargestScores

Backend = Literal["sdpa", "manual"]
"""``sdpa``: torch's fused kernel, which holds no ``time × time`` matrix. ``manual``: the formula, step by step."""


def scaled_scores(q: Tensor, k: Tensor, width: float | None = None) -> Tensor:
    """``Q Kᵀ / √d`` before any mask: ``(..., rows, d)`` and ``(..., columns, d)`` to ``(..., rows, columns)``.

    ``width`` is the d of the root, if it is not that of the queries.
    """
    return q @ k.mT / math.sqrt(width or q.shape[-1])


def attention_pattern(scores: Tensor, mask: Tensor) -> Tensor:
    """Softmax over the allowed positions of each row. Rows sum to 1; entries where the mask is false are 0."""
    return scores.masked_fill(~mask, -torch.inf).softmax(dim=-1)


class CausalAttention(Mixer):
    """Base class of softmax attention: ``softmax(mask(Q Kᵀ / √d + bias)) V``, computed by either backend.

    Intermediates: ``scores`` (scaled, with the position scheme's bias, before the mask), ``mask``, ``pattern`` (the
    softmax) and ``head_output`` (``pattern @ v``). The fused kernel never computes the first three, so a pass that
    records or edits one of them uses the formula: what is recorded is what was used.
    """

    keeps_keys = True
    has_pattern = True
    span: int | None = None
    """How many positions back a token can see, counting itself; None for all."""
    score_width: float | None = None
    """The d of the scores' ``√d``; the queries' width if None."""
    largest_scores: "LargestScores | None" = None
    """Takes in the largest score of each head in training; None where nobody asks for it."""
    softcap: float | None = None
    """The bound c of scores that become ``c tanh(scores / c)``; None for no bound."""
    by_blocks = True
    """Whether bf16 products on a CPU may run by blocks of queries, instead of by the fused kernel."""

    def __init__(self, backend: Backend, dropout: float = 0.0) -> None:
        super().__init__()
        self.backend: Backend = backend
        self.dropout = dropout

    def visible(self, rows: Tensor, columns: Tensor) -> Tensor:
        """Whether tokens at positions ``rows`` see those at ``columns``: booleans; the two shapes must broadcast."""
        return columns <= rows

    def sees_all(self, time: int) -> bool:
        """Whether each of the first ``time`` positions sees every earlier one, so that no mask has to be built."""
        return type(self).visible is CausalAttention.visible  # whether the subclass overrides it

    @property
    def mask_key(self) -> Hashable:
        """Layers with equal keys share a mask: by default all purely causal ones, and equal layers of one kind."""
        if type(self).visible is CausalAttention.visible:
            return "causal"
        return self.made_with or id(self)

    def new_state(self, capacity: int) -> LayerState:
        return KeyValues(capacity if self.span is None else min(capacity, self.span + LOOKAHEAD))

    def attend(self, q: Tensor, k: Tensor, v: Tensor, context: Context = Context()) -> Tensor:
        """Mix the values of :meth:`heads`, ``(batch, ..., time, width)``: returns q's shape with v's width."""
        columns = context.positions
        if context.state is not None:
            state = cast(KeyValues, context.state)  # made by new_state
            k, v, columns = state.append(k, v, columns, context.lengths)
        if self.largest_scores is not None and self.training:
            self.largest_scores.look(self, q, k, columns, context)
        if context.state is not None and context.cache is not None and context.cache.runs:
            return self.see("head_output", self._mix_runs(q, k, v, columns, context, context.cache.runs))
        return self.see("head_output", self.mix(q, k, v, columns, context))

    def _mix_runs(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        columns: Tensor | None,
        context: Context,
        runs: Sequence[tuple[slice, int]],
    ) -> Tensor:
        """:meth:`mix` run by run, each with the keys up to its end only."""
        mixed = []
        for run, n_key in runs:
            of_run = None if columns is None else columns[..., :n_key]
            keys, values = k[..., :n_key, :], v[..., :n_key, :]
            mixed.append(self.mix(q[..., run, :], keys, values, of_run, context.of_run(run, n_key)))
        return torch.cat(mixed, dim=-2)

    def mix(self, q: Tensor, k: Tensor, v: Tensor, columns: Tensor | None, context: Context) -> Tensor:
        """Mix the visible values, including cached ones.

        Args:
            q: Queries ``(batch, ..., rows, width)``.
            k: Keys ``(batch, ..., columns, width)``; the number of heads must divide the queries'.
            v: Values ``(batch, ..., columns, value width)``.
            columns: Positions of the keys, ``(columns,)`` or ``(batch, columns)``; None for 0, 1, 2, ...
            context: The queries' positions, documents and position scheme.
        """
        if k.ndim == 4 and k.shape[1] != q.shape[1]:  # each key head serves a group of query heads
            k, v = (heads.repeat_interleave(q.shape[1] // heads.shape[1], dim=1) for heads in (k, v))
        n_row, n_column = q.shape[-2], k.shape[-2]
        is_plain = columns is None and context.documents is None and self.sees_all(n_column)
        is_plain = is_plain and n_row in (1, n_column)
        mask = AttentionMask(self, context, columns, n_row, n_column, q.ndim == 4, q.dtype, q.device, is_plain)
        dropout = self.dropout if self.training else 0.0
        by_formula = self.backend == "manual" or self.softcap is not None  # which the fused kernel does not have
        if by_formula or self.asked_for("mask", "scores", "pattern"):
            return F.dropout(self._pattern(q, k, mask), dropout) @ v
        return self._kernel(q, k, v, mask, dropout)

    def _pattern(self, q: Tensor, k: Tensor, mask: AttentionMask) -> Tensor:
        """The softmax ``(batch, ..., rows, columns)`` by the formula; every step can be recorded."""
        seen, scores = self.see("mask", mask.as_matrix()), self._scores("scores", q, k, mask)
        return self.see("pattern", self._weights(scores, seen))

    def _scores(self, name: str, q: Tensor, k: Tensor, mask: AttentionMask) -> Tensor:
        """Scaled scores ``(..., rows, columns)`` with the position scheme's bias, recorded as ``name``."""
        scores, bias = scaled_scores(q, k, self.score_width), mask.bias()
        if self.softcap is not None:
            scores = self.softcap * torch.tanh(scores / self.softcap)
        return self.see(name, scores if bias is None else scores + bias)

    def scores_to_bound(self, q: Tensor, k: Tensor) -> Tensor:
        """The scores whose size matters to training: of q ``(..., rows, d)`` and k ``(..., columns, d)``, unmasked."""
        return scaled_scores(q, k, self.score_width)

    def _weights(self, scores: Tensor, mask: Tensor) -> Tensor:
        """The pattern from scores ``(batch, ..., rows, columns)`` and mask."""
        return attention_pattern(scores, mask)

    def _kernel(self, q: Tensor, k: Tensor, v: Tensor, mask: AttentionMask, dropout: float) -> Tensor:
        """The same by torch's fused kernel, or on a GPU by the one that skips blocks of other documents."""
        scheme, scale = mask.context.scheme, self.kernel_scale
        if mask.is_plain and not (scheme is not None and scheme.biases):
            if self.by_blocks and mask.n_row > 1 and dropout == 0 and suits_blockwise(q, v):
                return blockwise_attention(q, k, v, self.scale_for(q))
            return F.scaled_dot_product_attention(q, k, v, dropout_p=dropout, is_causal=mask.n_row > 1, scale=scale)
        if mask.suits_flex(q.shape[-1]) and dropout == 0:
            # autocast does not cast this kernel's inputs, and norms and rotations may return fp32
            q, k, v = (x.to(compute_dtype(v)) for x in (q, k, v))
            return compiled_flex_attention()(q, k, v, block_mask=mask.document_blocks(), scale=scale)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask.added(), dropout_p=dropout, scale=scale)

    @property
    def scale_width(self) -> float:
        return self.score_width or self.head_dim

    def scale_for(self, q: Tensor) -> float:
        """What products of queries ``(..., d)`` and keys are multiplied by."""
        return self.kernel_scale or 1 / math.sqrt(q.shape[-1])

    @property
    def kernel_scale(self) -> float | None:
        """What the fused kernel multiplies scores by; None for its own ``1/√d`` of the queries' width d."""
        return None if self.score_width is None else 1 / math.sqrt(self.score_width)
