"""Causal self-attention: the formula, the fast kernel beside it, and the multi-head layers over both.

Vaswani et al. 2017, "Attention Is All You Need" (1706.03762), eq. 1: ``softmax(Q Kᵀ / √d) V``,
here with the causal mask ``S_ij = −∞ for j > i`` of its section 3.2.3.
"""

import math
from collections.abc import Callable, Hashable
from functools import cache
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from lightning_gpt.errors import CallError
from lightning_gpt.models.context import Context
from lightning_gpt.models.kv_cache import LOOKAHEAD, KeyValues, LayerState
from lightning_gpt.models.layer import Linear
from lightning_gpt.models.norms import norms
from lightning_gpt.models.positions.scheme import Positions
from lightning_gpt.models.record import Watched
from lightning_gpt.models.registry import Choice, Registry

Backend = Literal["sdpa", "manual"]
"""``sdpa``: torch's fused kernel, no ``time × time`` matrix is held. ``manual``: the formula, step by step."""

attentions: Registry["CausalAttention"] = Registry(
    "attention", "dim", "n_head", "bias", "dropout", "backend", "qk_norm", "layer", "positions", "vocab_size"
)
"""Every attention layer: ``(batch, time, dim)`` to the same."""


def causal_mask(time: int, device: torch.device | None = None) -> Tensor:
    """``(time, time)`` booleans: row i may attend to column j where ``j <= i``."""
    return torch.ones(time, time, dtype=torch.bool, device=device).tril()


def scaled_scores(q: Tensor, k: Tensor) -> Tensor:
    """``Q Kᵀ / √d`` before any mask: ``(..., rows, d)`` and ``(..., columns, d)`` to ``(..., rows, columns)``."""
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
    """What every layer of softmax attention shares: ``softmax(mask(Q Kᵀ / √d + bias)) V`` by either backend.

    Intermediates: ``scores`` (scaled, with the position scheme's bias, before the mask), ``mask``, ``pattern`` (the
    softmax) and ``head_output`` (``pattern @ v``). The fused kernel never makes the first three, so a layer that
    is asked for one of them computes that pass by the formula: what is shown is what was used.
    """

    span: int | None = None
    """How many positions back a token can see, itself included; None for all."""
    mixes_first_layer = False
    """Whether it mixes in what the first layer made of each token, so that every token must go through both."""

    def __init__(self, backend: Backend, dropout: float = 0.0) -> None:
        super().__init__()
        self.backend = backend
        self.dropout = dropout

    def visible(self, rows: Tensor, columns: Tensor) -> Tensor:
        """Whether tokens at the positions ``rows`` see those at ``columns``: booleans, of shapes that broadcast."""
        return columns <= rows

    def sees_all(self, time: int) -> bool:
        """Whether each of the first ``time`` positions sees all before it, so that no mask need be made."""
        return type(self).visible is CausalAttention.visible

    @property
    def sight(self) -> Hashable:
        """Layers of equal sight hide the same, so that a pass makes their mask once."""
        return type(self), self.span

    def new_state(self, capacity: int) -> LayerState:
        """What this layer keeps of sequences of up to ``capacity`` tokens."""
        return KeyValues(capacity if self.span is None else min(capacity, self.span + LOOKAHEAD))

    def attend(self, q: Tensor, k: Tensor, v: Tensor, context: Context = Context()) -> Tensor:
        """Mix the values: q, k, v ``(batch, ..., time, head_dim)`` to the shape of q."""
        columns = context.at
        if isinstance(context.state, KeyValues):
            k, v, columns = context.state.append(k, v, context.at, context.lengths)
        if k.ndim == 4 and k.shape[1] != q.shape[1]:  # a key head serves a group of query heads
            k, v = (heads.repeat_interleave(q.shape[1] // heads.shape[1], dim=1) for heads in (k, v))
        sight = Sight(q, k, context, columns)
        dropout = self.dropout if self.training else 0.0
        if self.backend == "manual" or self.asked_for("mask", "scores", "pattern"):
            mixed = F.dropout(self._pattern(q, k, sight), dropout) @ v
        else:
            mixed = self._kernel(q, k, v, sight, dropout)
        return self.see("head_output", mixed)

    def _pattern(self, q: Tensor, k: Tensor, sight: "Sight") -> Tensor:
        """The formula, each step of it seen: the softmax ``(batch, ..., rows, columns)``."""
        mask, scores = self._mask(sight), self._scores("scores", q, k, sight)
        return self.see("pattern", self._weights(scores, mask))

    def _mask(self, sight: "Sight") -> Tensor:
        """What is seen, as booleans ``(..., rows, columns)`` also where plain causality is all that hides."""
        mask = sight.mask(self)
        return self.see("mask", sight.all_before() if mask is None else mask)

    def _scores(self, name: str, q: Tensor, k: Tensor, sight: "Sight") -> Tensor:
        """Scaled scores ``(..., rows, columns)`` with the position scheme's bias, seen as ``name``."""
        scores, bias = scaled_scores(q, k), sight.bias()
        return self.see(name, scores if bias is None else scores + bias)

    def _weights(self, scores: Tensor, mask: Tensor) -> Tensor:
        """The pattern from the scores ``(batch, ..., rows, columns)`` and what is seen."""
        return attention_pattern(scores, mask)

    def _kernel(self, q: Tensor, k: Tensor, v: Tensor, sight: "Sight", dropout: float) -> Tensor:
        """The same by torch's fused kernel, or on a GPU by the one that skips the blocks of other documents."""
        if q.is_cuda and sight.only_documents_hide(self) and dropout == 0:
            return _compiled_flex_attention()(q, k, v, block_mask=sight.document_blocks())
        mask = sight.added(self)
        causal = mask is None and q.shape[-2] > 1
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout, is_causal=causal)


class Sight:
    """What the tokens of a pass see in one layer: the mask and the position scheme's bias, made only where needed.

    Args:
        q: Queries ``(batch, ..., rows, head_dim)``.
        k: Keys ``(batch, ..., columns, head_dim)``.
        context: Where the rows stand.
        columns: Where the keys stand, ``(columns,)`` or ``(batch, columns)``, −1 for none; None for 0, 1, 2, ...
    """

    def __init__(self, q: Tensor, k: Tensor, context: Context, columns: Tensor | None) -> None:
        self.context = context
        self.n_row, self.n_column = q.shape[-2], k.shape[-2]
        self.heads = q.ndim == 4
        self.dtype, self.device = q.dtype, q.device
        self._columns = columns

    @property
    def is_whole(self) -> bool:
        """Whether the keys are those of the queries' tokens, so that a token's index tells its neighbours."""
        return self._columns is None and self.n_row == self.n_column

    @property
    def rows(self) -> Tensor:
        """Positions of the queries."""
        return self.context.positions(self.n_row, self.device)

    @property
    def columns(self) -> Tensor:
        """Positions of the keys."""
        return torch.arange(self.n_column, device=self.device) if self._columns is None else self._columns

    def all_before(self) -> Tensor:
        """The causal mask as booleans, where nothing else hides."""
        if self.n_row == self.n_column:
            return causal_mask(self.n_row, self.device)
        return torch.ones(self.n_row, self.n_column, dtype=torch.bool, device=self.device)

    def mask(self, attention: CausalAttention) -> Tensor | None:
        """What ``attention`` hides; None for plain causality, or where one token comes after all the others."""
        plain = self._columns is None and self.context.documents is None and attention.sees_all(self.n_column)
        if plain and self.n_row in (1, self.n_column):
            return None
        return self.context.once((attention.sight, self.n_row, self.n_column), lambda: self._make_mask(attention))

    def _make_mask(self, attention: CausalAttention) -> Tensor:
        rows, columns, documents = self.rows, self.columns, self.context.documents
        mask = attention.visible(rows[..., :, None], columns[..., None, :]) & (columns >= 0)[..., None, :]
        if documents is not None:
            mask = mask & (documents[:, :, None] == documents[:, None, :])
        return mask[:, None] if self.heads and mask.ndim == 3 else mask

    @property
    def bias_scheme(self) -> Positions | None:
        """The position scheme, where it adds to the scores."""
        scheme = self.context.scheme
        return scheme if scheme is not None and scheme.biases else None

    def bias(self) -> Tensor | None:
        """What the position scheme adds to the scores, ``(n_head, rows, columns)`` or with a batch before it."""
        scheme = self.bias_scheme
        return None if scheme is None else scheme.bias(self.rows, self.columns)

    def added(self, attention: CausalAttention) -> Tensor | None:
        """Mask and bias as the fused kernel takes them: booleans, or what is added to the scores."""
        mask = self.mask(attention)
        if self.bias_scheme is None:
            return mask
        return self.masked_bias(
            (attention.sight, self.n_row, self.n_column),
            lambda: (self.rows, self.columns, self.all_before() if mask is None else mask),
        )

    def masked_bias(self, key: Hashable, seen: Callable[[], tuple[Tensor, Tensor, Tensor]]) -> Tensor:
        """What the position scheme adds where a token is seen, −∞ elsewhere; of fixed numbers made once a pass.

        Args:
            key: What tells this mask from the others of the pass.
            seen: Gives the positions of rows and columns, and the mask.
        """

        def make() -> Tensor:
            rows, columns, mask = seen()
            assert self.bias_scheme is not None
            bias = self.bias_scheme.bias(rows, columns)
            assert bias is not None
            return bias.to(self.dtype).masked_fill(~mask, -torch.inf)

        scheme = self.bias_scheme
        if scheme is not None and any(parameter.requires_grad for parameter in scheme.parameters()):
            return make()  # each layer's own, so that a layer can be run again for its gradient
        return self.context.once((key, self.dtype, "bias"), make)

    def only_documents_hide(self, attention: CausalAttention) -> bool:
        """Whether a row sees all of its document before it, and nothing is added to the scores."""
        hidden_by_them = self.context.documents is not None and attention.sees_all(self.n_column)
        return hidden_by_them and self.bias_scheme is None

    def document_blocks(self) -> BlockMask:
        """The mask that keeps documents apart, for the kernel that skips whole blocks that are hidden."""
        documents = self.context.documents
        assert documents is not None
        return self.context.once("document blocks", lambda: document_block_mask(documents))


def document_block_mask(documents: Tensor) -> BlockMask:
    """Causality within documents ``(batch, time)`` for ``flex_attention``, which holds no ``time × time`` matrix."""

    def visible(batch: Tensor, _head: Tensor, row: Tensor, column: Tensor) -> Tensor:
        return (row >= column) & (documents[batch, row] == documents[batch, column])

    batch, time = documents.shape
    return create_block_mask(visible, batch, None, time, time, device=str(documents.device))


@attentions.register("full")
class MultiHeadAttention(CausalAttention):
    """Multi-head causal self-attention, Vaswani et al. 2017, section 3.2.2, with one product for Q, K and V.

    Intermediates besides those of :class:`CausalAttention`: ``q`` ``(batch, n_head, time, head_dim)``, ``k`` and ``v``
    of as many heads as there are keys' heads, as they enter the scores, and ``output`` ``(batch, time, dim)``, the
    mixed heads after the output projection.

    Args:
        dim: Width of the residual stream, a multiple of ``n_head``.
        n_head: Number of heads, each of width ``dim / n_head``.
        bias: Whether the projections have a bias.
        dropout: Probability of dropping an attention weight while training.
        backend: How the attention itself is computed.
        qk_norm: The norm of each head's queries and keys: Henry et al. 2020 (2010.04245), section 3.
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
        qk_norm: Choice = "none",
        n_kv_head: int | None = None,
    ) -> None:
        super().__init__(backend, dropout)
        self.n_head, self.n_kv_head = n_head, n_kv_head or n_head
        self.head_dim = dim // n_head
        if n_head % self.n_kv_head:
            raise CallError(f"n_kv_head is {n_kv_head} and must divide n_head, which is {n_head}")
        self.qkv = Linear(dim, (n_head + 2 * self.n_kv_head) * self.head_dim, bias=bias)
        self.q_norm = norms.make(qk_norm, dim=self.head_dim, bias=False)
        self.k_norm = norms.make(qk_norm, dim=self.head_dim, bias=False)
        self.projection = Linear(dim, dim, bias=bias)

    def forward(self, x: Tensor, context: Context = Context()) -> Tensor:
        """``(batch, time, dim)`` to the same."""
        q, k, v = self.heads(x, context)
        mixed = self.attend(self.see("q", q), self.see("k", k), self.see("v", v), context)  # (B, H, T, D)
        return self.joined(mixed)

    def heads(self, x: Tensor, context: Context) -> tuple[Tensor, Tensor, Tensor]:
        """Queries ``(batch, n_head, time, head_dim)``, keys and values ``(batch, n_kv_head, time, head_dim)``."""
        batch, time, _ = x.shape
        qkv = self.qkv(x).view(batch, time, -1, self.head_dim).transpose(1, 2)  # (B, H + 2·H_kv, T, D)
        q, k, v = qkv.split([self.n_head, self.n_kv_head, self.n_kv_head], dim=1)
        return self.placed(q, self.q_norm, context), self.placed(k, self.k_norm, context), v

    def placed(self, x: Tensor, norm: nn.Module, context: Context) -> Tensor:
        """Queries or keys ``(batch, heads, time, width)`` normed, then turned as the position scheme turns them."""
        return context.turn(norm(x))

    def joined(self, mixed: Tensor) -> Tensor:
        """The heads side by side and through the output projection: ``(batch, time, dim)``."""
        return self.see("output", self.projection(mixed.transpose(1, 2).flatten(2)))


@attentions.register("grouped")
class GroupedQueryAttention(MultiHeadAttention):
    """Groups of query heads share a key and value head: Ainslie et al. 2023 (2305.13245), section 2.2."""

    def __init__(self, *, n_kv_head: int, **shared: Any) -> None:
        super().__init__(n_kv_head=n_kv_head, **shared)


@attentions.register("multi_query")
class MultiQueryAttention(MultiHeadAttention):
    """All query heads share one key and value head: Shazeer 2019 (1911.02150), section 3."""

    def __init__(self, dim: int, n_head: int, *, bias: bool, dropout: float, backend: Backend, qk_norm: Choice) -> None:
        super().__init__(dim, n_head, bias=bias, dropout=dropout, backend=backend, qk_norm=qk_norm, n_kv_head=1)
