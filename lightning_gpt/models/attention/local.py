"""Softmax attention that sees its neighbourhood and a few tokens far away, at a cost far below time².

The fast path goes by blocks: the queries of a block meet the keys of their own block, of the one before it, and of the
few *far* tokens that a kind names. What of these each query sees is still decided by the kind's one definition,
:meth:`~lightning_gpt.models.attention.formula.CausalAttention.visible`.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_gpt.models.attention.mask import AttentionMask
from lightning_gpt.models.attention.mixer import attentions, require_whole
from lightning_gpt.models.attention.multi_head import MultiHeadAttention
from lightning_gpt.models.kv_cache import LOOKAHEAD, KeyValues, LayerState
from lightning_gpt.models.positions.scheme import positions_within


class LocalAttention(MultiHeadAttention):
    """What kinds that see their neighbourhood share; each says what is visible and which far tokens there are."""

    block: int
    """Length of a block: a token sees its own block and the one before it, and besides these far tokens only."""

    def sees_all(self, time: int) -> bool:
        """Within one block all is seen."""
        return time <= self.block

    def far(self, places: Tensor) -> Tensor | None:
        """Where the tokens stand that blocks see from afar.

        Args:
            places: Position of each token, ``(batch or 1, n_block, block)``.

        Returns:
            ``(batch or 1, n_block or 1, n_far)`` indices along time, no index twice; those in a block's neighbourhood
            do not count there again.
        """
        return None

    def _kernel(self, q: Tensor, k: Tensor, v: Tensor, seen: AttentionMask, dropout: float) -> Tensor:
        if not seen.is_whole or seen.n_row <= self.block:
            return super()._kernel(q, k, v, seen, dropout)
        grid: _Grid = seen.context.shared.layouts.made((self.mask_key, "grid", seen.n_row), lambda: _grid(self, seen))
        mask = _added(grid, self, seen)
        rows, time = grid.split(q), q.shape[-2]
        # SDPA takes four dimensions: first those that the mask varies in, then those that it is the same for
        order = [2] + [dim for dim in (0, 1) if mask.shape[2 * dim] > 1]  # mask: (B, N, H, W, C)
        order += [dim for dim in (0, 1) if dim not in order]
        varying = mask.transpose(0, 1).flatten(0, 2)[:, None]  # (X, 1, W, C)
        q, k, v = (
            x.permute(*order, 3, 4).reshape(len(varying), -1, *x.shape[3:]) for x in (rows, grid.keys(k), grid.keys(v))
        )
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=varying, dropout_p=dropout)  # (X, Y, W, D)
        mixed = mixed.view(*(rows.shape[dim] for dim in order), *mixed.shape[2:])
        back = [order.index(dim) for dim in (0, 1, 2)]
        return mixed.permute(*back, 3, 4).flatten(2, 3)[:, :, :time]


@dataclass(frozen=True)
class _Grid:
    """A sequence cut in blocks: what the queries of each may see."""

    rows: Tensor  # positions of the queries (batch or 1, n_block, block)
    columns: Tensor  # positions of the keys that each block meets (batch or 1, n_block, n_column)
    mask: Tensor  # (batch or 1, n_block, block, n_column)
    far: Tensor | None  # indices of the far keys (batch or 1, n_block or 1, n_far)

    def split(self, x: Tensor) -> Tensor:
        """``(batch, head, time, width)`` to ``(batch, head, n_block, block, width)``, the last block filled with 0."""
        n_block, block = self.rows.shape[1:]
        filled = F.pad(x, (0, 0, 0, n_block * block - x.shape[2]))
        return filled.reshape(*x.shape[:2], n_block, block, x.shape[3])

    def keys(self, x: Tensor) -> Tensor:
        """Keys or values ``(batch, head, time, width)`` to those that each block meets: time becomes two dimensions."""
        own = self.split(x)
        before = torch.cat([torch.zeros_like(own[:, :, :1]), own[:, :, :-1]], dim=2)
        if self.far is None:
            return torch.cat([before, own], dim=3)
        # what lies outside a short text is hidden by the mask, whatever is gathered for it
        index = (
            self.far.clamp(0, own.shape[2] * own.shape[3] - 1)
            .flatten(1)[:, None, :, None]
            .expand(*x.shape[:2], -1, x.shape[3])
        )
        far = own.flatten(2, 3).gather(2, index).view(*x.shape[:2], *self.far.shape[1:], x.shape[3])
        return torch.cat([before, own, far.expand(-1, -1, own.shape[2], -1, -1)], dim=3)


def _grid(attention: LocalAttention, seen: AttentionMask) -> _Grid:
    block, documents = attention.block, seen.context.documents
    n_block = -(-seen.n_row // block)
    index = torch.arange(n_block * block, device=seen.device).view(1, n_block, block)
    places = index
    if documents is not None:  # what fills the last block is a document of its own, which no token sees
        documents = F.pad(documents, (0, index.numel() - seen.n_row), value=-1)
        places = positions_within(documents).view(-1, n_block, block)
    columns = torch.cat([index - block, index], dim=-1)
    far = attention.far(places)
    if far is not None:
        begins = index[:, :, :1] - block  # where each block's neighbourhood begins
        distant = torch.where(far < begins, far, -1)
        columns = torch.cat([columns.expand(len(distant), -1, -1), distant], dim=-1)

    def at_columns(x: Tensor) -> Tensor:
        batch = max(len(x), len(columns))
        at = columns.clamp(min=0).expand(batch, -1, -1)
        return x.flatten(1).expand(batch, -1).gather(1, at.flatten(1)).view_as(at)

    rows, keys = places, at_columns(places)
    mask = attention.visible(rows[..., :, None], keys[..., None, :]) & (columns >= 0)[..., None, :]
    if documents is not None:
        of_rows = documents.view(-1, n_block, block)
        mask = mask & (of_rows[..., :, None] == at_columns(documents)[..., None, :])
    return _Grid(rows, keys, mask, far)


def _added(grid: _Grid, attention: LocalAttention, seen: AttentionMask) -> Tensor:
    """Mask and position bias as the kernel takes them: ``(batch or 1, n_block, n_head or 1, block, n_column)``."""
    mask = grid.mask[:, :, None]
    if seen.bias_scheme is None:
        return mask
    return seen.masked_bias((attention.mask_key, "grid", seen.n_row), lambda: (grid.rows, grid.columns, mask))


@attentions.register("window")
class WindowAttention(LocalAttention):
    """Each token sees the last ``window`` tokens, itself included: ``i − j < window``.

    Beltagy et al. 2020 (2004.05150), section 3.1, looking back only. After L layers a token has heard of
    ``L (window − 1)`` tokens before it. Time and memory grow as ``T · window``; the cache holds ``window`` tokens and a
    few more, whatever T.

    Args:
        window: How many tokens are seen.
        shared: As in :class:`~lightning_gpt.models.attention.multi_head.MultiHeadAttention`.
    """

    def __init__(
        self,
        *,
        window: int,
        **shared: Any,
    ) -> None:
        super().__init__(**shared)
        require_whole("window", "window", window, 1)
        self.span = self.block = window

    def visible(self, rows: Tensor, columns: Tensor) -> Tensor:
        return (columns <= rows) & (rows - columns < self.block)


@attentions.register("global_window")
class GlobalWindowAttention(LocalAttention):
    """A window, and the first tokens of all: ``i − j < window`` or ``j < n_global``, for ``j <= i``.

    Beltagy et al. 2020 (2004.05150), section 3.1, "global attention", of tokens that are seen by all and, being causal,
    see what is before them; Xiao et al. 2023 (2309.17453), section 3.2: the first few tokens take up what attention
    has nowhere else to put. Here a token keeps its true position, where StreamingLLM counts positions within the cache.
    With documents kept apart the first tokens are those of each document. Time and memory grow as
    ``T · (window + n_global)``.

    Args:
        window: How many tokens are seen, the token itself included.
        n_global: How many of the first tokens all later ones see.
        shared: As in :class:`~lightning_gpt.models.attention.multi_head.MultiHeadAttention`.
    """

    def __init__(
        self,
        *,
        window: int,
        n_global: int = 4,
        **shared: Any,
    ) -> None:
        super().__init__(**shared)
        require_whole("global_window", "window", window, 1)
        require_whole("global_window", "n_global", n_global, 1)
        self.block, self.n_global = window, n_global

    def visible(self, rows: Tensor, columns: Tensor) -> Tensor:
        return (columns <= rows) & ((rows - columns < self.block) | (columns < self.n_global))

    def new_state(self, capacity: int) -> LayerState:
        kept = self.n_global + self.block + LOOKAHEAD
        return KeyValues(capacity) if capacity <= kept else KeyValues(kept, pinned=self.n_global)

    def far(self, places: Tensor) -> Tensor:
        """The first tokens of the one document that goes on from before a block's neighbourhood."""
        n_block = places.shape[1]
        begins = (torch.arange(n_block, device=places.device) - 1) * self.block
        document_begins = begins - torch.cat([places[:, :1, 0], places[:, :-1, 0]], dim=1)  # (batch, n_block)
        return document_begins[..., None] + torch.arange(self.n_global, device=places.device)


@attentions.register("strided")
class StridedAttention(LocalAttention):
    """The fixed pattern of the Sparse Transformer, both of its parts in every head.

    Position i sees j ≤ i where ``⌊j/ℓ⌋ = ⌊i/ℓ⌋`` (its own segment of ``stride`` ℓ tokens) or ``j mod ℓ ≥ ℓ − c`` (the
    last ``n_summary`` c tokens of every segment, which sum it up for the later ones): Child et al. 2019 (1904.10509),
    section 4.3, the two sets united as in section 5.1. Of the paper's two patterns this is the one that it finds good
    for text. Two steps lead from any token to any later one. Time grows as ``T · (ℓ + c T / ℓ)``: as T√T where ℓ is
    about √T.

    Args:
        stride: Length ℓ of a segment, in tokens.
        n_summary: How many tokens c at a segment's end all later ones see; the paper takes 8 to 32 of 128 to 256.
        shared: As in :class:`~lightning_gpt.models.attention.multi_head.MultiHeadAttention`.
    """

    def __init__(
        self,
        *,
        stride: int,
        n_summary: int = 1,
        **shared: Any,
    ) -> None:
        super().__init__(**shared)
        require_whole("strided", "stride", stride, 1)
        require_whole("strided", "n_summary", n_summary, 1, stride)
        self.block, self.n_summary = stride, n_summary

    def visible(self, rows: Tensor, columns: Tensor) -> Tensor:
        same_segment = rows // self.block == columns // self.block
        return (columns <= rows) & (same_segment | self._sums_up(columns))

    def _sums_up(self, places: Tensor) -> Tensor:
        return places % self.block >= self.block - self.n_summary

    def far(self, places: Tensor) -> Tensor:
        """What sums up a segment; segments begin anew with each document, so a block holds up to c such tokens."""
        within = self._sums_up(places).int().topk(self.n_summary, dim=-1).indices  # (batch, n_block, c)
        begins = torch.arange(places.shape[1], device=places.device)[:, None] * self.block
        return (begins + within).flatten(1)[:, None]  # a token that sums up nothing is not visible from afar
