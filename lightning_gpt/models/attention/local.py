"""Softmax attention to a neighbourhood and a few distant tokens, at a cost far below time².

The fast path works in blocks: the queries of a block meet the keys of their own block, of the previous block, and of
the few *far* tokens that a kind defines. Which of these a query sees is still decided by the kind's only definition,
:meth:`~lightning_gpt.models.attention.formula.CausalAttention.visible`.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_gpt.errors import CallError
from lightning_gpt.models.attention.mask import AttentionMask
from lightning_gpt.models.attention.mixer import attentions
from lightning_gpt.models.attention.multi_head import MultiHeadAttention
from lightning_gpt.models.kv_cache import LOOKAHEAD, KeyValues, LayerState
from lightning_gpt.models.positions.scheme import positions_within
from lightning_gpt.options import Length


class LocalAttention(MultiHeadAttention):
    """Base class of local attention; subclasses define what is visible and which tokens are far tokens."""

    block: int
    """Block length: a token sees its own block, the previous block, and otherwise only far tokens."""

    def sees_all(self, time: int) -> bool:
        """True if all tokens fit in one block."""
        return time <= self.block

    def far(self, places: Tensor) -> Tensor | None:
        """Indices of the far tokens that each block meets.

        Args:
            places: Position of each token, ``(batch or 1, n_block, block)``.

        Returns:
            Distinct indices along time, ``(batch or 1, n_block or 1, n_far)``; those within a block's neighbourhood are
            not counted twice.
        """
        return None

    def beside(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Add what the queries of every block meet besides tokens.

        Args:
            q: Queries ``(batch, head, n_block, block, width)``.
            k: Keys ``(batch, head, n_block, n_column, width)``.
            v: Values of the same shape.
            mask: ``(batch or 1, n_block, head or 1, block, n_column)``, booleans or values added to the scores.
        """
        return q, k, v, mask

    def _kernel(self, q: Tensor, k: Tensor, v: Tensor, seen: AttentionMask, dropout: float) -> Tensor:
        if not seen.has_same_tokens or seen.n_row <= self.block:
            return super()._kernel(q, k, v, seen, dropout)
        grid: _Grid = seen.context.shared.layouts.made((self.mask_key, "grid", seen.n_row), lambda: _grid(self, seen))
        mask = _added(grid, self, seen)
        rows, keys, values, mask = self.beside(grid.split(q), grid.keys(k), grid.keys(v), mask)
        (time, width), scale = q.shape[-2:], self.scale_for(q)
        # SDPA takes four dimensions: first those along which the mask varies, then those along which it is constant
        order = [2] + [dim for dim in (0, 1) if mask.shape[2 * dim] > 1]  # mask: (B, N, H, W, C)
        order += [dim for dim in (0, 1) if dim not in order]
        varying = mask.transpose(0, 1).flatten(0, 2)[:, None]  # (X, 1, W, C)
        q, k, v = (x.permute(*order, 3, 4).reshape(len(varying), -1, *x.shape[3:]) for x in (rows, keys, values))
        mixed = F.scaled_dot_product_attention(
            q, k, v, attn_mask=varying, dropout_p=dropout, scale=scale
        )  # (X, Y, W, D)
        mixed = mixed.view(*(rows.shape[dim] for dim in order), *mixed.shape[2:])
        back = [order.index(dim) for dim in (0, 1, 2)]
        return mixed.permute(*back, 3, 4).flatten(2, 3)[:, :, :time, :width]


@dataclass(frozen=True)
class _Grid:
    """A sequence divided into blocks, with what each block's queries may see."""

    rows: Tensor  # positions of the queries (batch or 1, n_block, block)
    columns: Tensor  # positions of the keys each block meets (batch or 1, n_block, n_column)
    mask: Tensor  # (batch or 1, n_block, block, n_column)
    far: Tensor | None  # indices of the far keys (batch or 1, n_block or 1, n_far)

    def split(self, x: Tensor) -> Tensor:
        """``(batch, head, time, width)`` to ``(batch, head, n_block, block, width)``, zero-padding the end."""
        n_block, block = self.rows.shape[1:]
        filled = F.pad(x, (0, 0, 0, n_block * block - x.shape[2]))
        return filled.reshape(*x.shape[:2], n_block, block, x.shape[3])

    def keys(self, x: Tensor) -> Tensor:
        """Gather the keys or values that each block meets.

        ``(batch, head, time, width)`` to ``(batch, head, n_block, n_column, width)``.
        """
        own = self.split(x)
        before = torch.cat([torch.zeros_like(own[:, :, :1]), own[:, :, :-1]], dim=2)
        if self.far is None:
            return torch.cat([before, own], dim=3)
        # indices outside a short text are clamped; the mask hides what is gathered for them
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
    if documents is not None:  # padding in the last block is its own document, which no token sees
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
    """Mask and position bias in the kernel's layout: ``(batch or 1, n_block, n_head or 1, block, n_column)``."""
    mask = grid.mask[:, :, None]
    if seen.bias_scheme is None:
        return mask
    return seen.masked_bias((attention.mask_key, "grid", seen.n_row), lambda: (grid.rows, grid.columns, mask))


@attentions.register("window")
class WindowAttention(LocalAttention):
    """Each token sees the last ``window`` tokens, including itself: ``i − j < window``.

    Beltagy et al. 2020 (2004.05150), section 3.1, looking back only. After L layers, information from
    ``L (window − 1)`` tokens back can reach a token. Time and memory grow as ``T · window``; the cache holds slightly
    more than ``window`` tokens, regardless of T.

    Args:
        window: Number of visible tokens.
        shared: As in :class:`~lightning_gpt.models.attention.multi_head.MultiHeadAttention`.
    """

    def __init__(
        self,
        *,
        window: Length,
        **shared: Any,
    ) -> None:
        super().__init__(**shared)
        self.span = self.block = window

    def visible(self, rows: Tensor, columns: Tensor) -> Tensor:
        return (columns <= rows) & (rows - columns < self.block)


@attentions.register("global_window")
class GlobalWindowAttention(LocalAttention):
    """A window plus the first tokens of the text: ``i − j < window`` or ``j < n_global``, for ``j <= i``.

    Beltagy et al. 2020 (2004.05150), section 3.1, "global attention"; under causality the global tokens are seen by all
    later ones and see only earlier ones. Xiao et al. 2023 (2309.17453), section 3.2: the first few tokens absorb
    attention that is not needed elsewhere. Here tokens keep their true positions, whereas StreamingLLM counts positions
    within the cache. If documents are kept apart, the first tokens are those of each document. Time and memory grow as
    ``T · (window + n_global)``.

    Args:
        window: Number of visible tokens, including the token itself.
        n_global: Number of initial tokens that all later tokens see.
        shared: As in :class:`~lightning_gpt.models.attention.multi_head.MultiHeadAttention`.
    """

    def __init__(
        self,
        *,
        window: Length,
        n_global: Length = 4,
        **shared: Any,
    ) -> None:
        super().__init__(**shared)
        self.block, self.n_global = window, n_global

    def visible(self, rows: Tensor, columns: Tensor) -> Tensor:
        return (columns <= rows) & ((rows - columns < self.block) | (columns < self.n_global))

    def new_state(self, capacity: int) -> LayerState:
        kept = self.n_global + self.block + LOOKAHEAD
        return KeyValues(capacity) if capacity <= kept else KeyValues(kept, pinned=self.n_global)

    def far(self, places: Tensor) -> Tensor:
        """The first tokens of the document that starts before a block's neighbourhood and continues into it."""
        n_block = places.shape[1]
        begins = (torch.arange(n_block, device=places.device) - 1) * self.block
        document_begins = begins - torch.cat([places[:, :1, 0], places[:, :-1, 0]], dim=1)  # (batch, n_block)
        return document_begins[..., None] + torch.arange(self.n_global, device=places.device)


@attentions.register("strided")
class StridedAttention(LocalAttention):
    """The fixed pattern of the Sparse Transformer, with both of its parts in every head.

    Position i sees j ≤ i where ``⌊j/ℓ⌋ = ⌊i/ℓ⌋`` (its own segment of ``stride`` ℓ tokens) or ``j mod ℓ ≥ ℓ − c`` (the
    last ``n_summary`` c tokens of every segment, which summarise it for later ones): Child et al. 2019 (1904.10509),
    section 4.3, the two sets merged as in section 5.1. Of the paper's two patterns, this is the one it recommends for
    text. Any token can reach any later one in two steps. Time grows as ``T · (ℓ + c T / ℓ)``: as T√T if ℓ is about √T.

    Args:
        stride: Segment length ℓ, in tokens.
        n_summary: Number c of tokens at the end of a segment that all later tokens see; the paper uses 8 to 32 for ℓ of
            128 to 256.
        shared: As in :class:`~lightning_gpt.models.attention.multi_head.MultiHeadAttention`.
    """

    def __init__(
        self,
        *,
        stride: Length,
        n_summary: Length = 1,
        **shared: Any,
    ) -> None:
        super().__init__(**shared)
        if n_summary > stride:
            raise CallError(f"attention n_summary is {n_summary}; it must be at most stride, which is {stride}")
        self.block, self.n_summary = stride, n_summary

    def visible(self, rows: Tensor, columns: Tensor) -> Tensor:
        same_segment = rows // self.block == columns // self.block
        return (columns <= rows) & (same_segment | self._sums_up(columns))

    def _sums_up(self, places: Tensor) -> Tensor:
        return places % self.block >= self.block - self.n_summary

    def far(self, places: Tensor) -> Tensor:
        """The summary tokens of each segment; segments restart with each document, so a block holds up to c of them."""
        within = self._sums_up(places).int().topk(self.n_summary, dim=-1).indices  # (batch, n_block, c)
        begins = torch.arange(places.shape[1], device=places.device)[:, None] * self.block
        return (begins + within).flatten(1)[:, None]  # tokens that are not summary tokens are not visible from afar
