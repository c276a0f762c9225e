"""What the tokens of a pass see in one layer: the mask and the position bias, computed only where needed."""

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from functools import cache
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from lightning_gpt.models.context import Context
from lightning_gpt.models.positions.scheme import Positions

FLEX_DEVICES = ("cuda",)
"""Devices on which ``flex_attention`` is faster than the fused kernel with a mask."""
_NARROWEST_FLEX_HEAD = 16
_ROWS_AT_ONCE = 512


def causal_mask(time: int, device: torch.device | None = None) -> Tensor:
    """``(time, time)`` booleans: row i may attend to column j if ``j <= i``."""
    return torch.ones(time, time, dtype=torch.bool, device=device).tril()


@cache
def compiled_flex_attention() -> Callable[..., Tensor]:
    """``flex_attention`` is a fused kernel only when compiled; compiled on first use, because that takes seconds."""
    compiled: Callable[..., Tensor] = torch.compile(flex_attention)
    return compiled


class Hides(Protocol):
    """What a mask needs to know of an attention layer."""

    @property
    def mask_key(self) -> Hashable:
        """Layers with equal keys hide the same positions."""

    def visible(self, rows: Tensor, columns: Tensor) -> Tensor:
        """Whether tokens at positions ``rows`` see those at ``columns``."""

    def sees_all(self, time: int) -> bool:
        """Whether each of the first ``time`` positions sees every earlier one."""


@dataclass(frozen=True)
class AttentionMask:
    """What ``n_row`` queries see of ``n_column`` keys.

    Args:
        attention: The layer.
        context: The queries' positions, documents and position scheme.
        columns: Positions of the keys, ``(columns,)`` or ``(batch, columns)``, −1 for an empty slot; None for 0, 1, 2,
            ...
        n_row: Number of queries per row of the batch.
        n_column: Number of keys.
        has_heads: Whether queries have a head dimension.
        dtype: The queries' dtype.
        device: The queries' device.
        is_plain: Whether only the future is hidden, so that the kernel's own causal mask suffices.
    """

    attention: Hides
    context: Context
    columns: Tensor | None
    n_row: int
    n_column: int
    has_heads: bool
    dtype: torch.dtype
    device: torch.device
    is_plain: bool

    @property
    def has_same_tokens(self) -> bool:
        """Whether keys and queries belong to the same tokens, so that a token's index identifies its neighbours.

        Tokens that are kept apart by document have positions of their own, and are neighbours all the same.
        """
        context = self.context
        by_document = context.documents is not None and context.state is None and not context.is_choice
        return (self.columns is None or by_document) and self.n_row == self.n_column

    @property
    def key(self) -> Hashable:
        """Identifies this mask among those of the pass."""
        return self.attention.mask_key, self.n_row, self.n_column

    def row_positions(self) -> Tensor:
        """Positions of the queries."""
        return self.context.numbered(self.n_row, self.device)

    def column_positions(self) -> Tensor:
        """Positions of the keys."""
        return torch.arange(self.n_column, device=self.device) if self.columns is None else self.columns

    def as_matrix(self) -> Tensor:
        """The mask as booleans ``(rows, columns)`` or ``(batch, 1, rows, columns)``."""
        if not self.is_plain:
            return self.context.shared.masks.made(self.key, self._make)
        if self.n_row == self.n_column:
            return causal_mask(self.n_row, self.device)
        return torch.ones(self.n_row, self.n_column, dtype=torch.bool, device=self.device)

    def _make(self) -> Tensor:
        rows, columns = self.row_positions(), self.column_positions()
        documents, of_keys = self.context.documents, self.context.key_documents
        mask = self.attention.visible(rows[..., :, None], columns[..., None, :]) & (columns >= 0)[..., None, :]
        if documents is not None:
            assert of_keys is not None
            mask = mask & (documents[:, :, None] == of_keys[:, None, :])
        return mask[:, None] if self.has_heads and mask.ndim == 3 else mask

    @property
    def bias_scheme(self) -> Positions | None:
        """The position scheme, if it adds to the scores; else None."""
        scheme = self.context.scheme
        return scheme if scheme is not None and scheme.biases else None

    def bias(self) -> Tensor | None:
        """The position scheme's score bias, ``(n_head, rows, columns)`` or with a leading batch dimension."""
        scheme = self.bias_scheme
        return None if scheme is None else scheme.bias(self.row_positions(), self.column_positions(), self.dtype)

    def added(self) -> Tensor:
        """Mask and bias as the fused kernel takes them: booleans, or values added to the scores."""
        if self.bias_scheme is None:
            return self.as_matrix()
        return self.masked_bias(self.key, lambda: (self.row_positions(), self.column_positions(), self.as_matrix()))

    def masked_bias(self, key: Hashable, seen: Callable[[], tuple[Tensor, Tensor, Tensor]]) -> Tensor:
        """The position bias where a key is visible, −∞ elsewhere; computed once per pass unless it is learned.

        Args:
            key: Identifies this mask among those of the pass.
            seen: Returns the positions of rows and columns, and the mask.
        """
        scheme = self.bias_scheme
        assert scheme is not None

        def make() -> Tensor:
            rows, columns, mask = seen()
            return scheme.bias(rows, columns, self.dtype).masked_fill(~mask, -torch.inf)

        if any(parameter.requires_grad for parameter in scheme.parameters()):
            return make()  # per layer, so that a layer can be recomputed for its gradient
        return self.context.shared.biases.made((key, self.dtype), make)

    def suits_flex(self, head_dim: int) -> bool:
        """Whether the kernel that skips whole blocks can be used: causality within documents, wide enough heads."""
        has_kernel = self.device.type in FLEX_DEVICES and self.has_heads and head_dim >= _NARROWEST_FLEX_HEAD
        hidden_by_documents = self.context.documents is not None and self.attention.sees_all(self.n_column)
        return has_kernel and hidden_by_documents and self.bias_scheme is None and self.has_no_past

    @property
    def has_no_past(self) -> bool:
        """Whether only the queries' own tokens are visible, and no earlier ones from a cache."""
        return self.context.state is None and self.n_row == self.n_column

    def document_blocks(self) -> BlockMask:
        """The block mask that keeps documents apart, for the kernel that skips fully hidden blocks."""
        documents = self.context.documents
        assert documents is not None
        blocks: BlockMask = self.context.shared.layouts.made("document blocks", lambda: document_block_mask(documents))
        return blocks


def document_block_mask(documents: Tensor) -> BlockMask:
    """Causal mask within documents ``(batch, time)`` for ``flex_attention``, without a ``time × time`` matrix."""

    def visible(batch: Tensor, _head: Tensor, row: Tensor, column: Tensor) -> Tensor:
        return (row >= column) & (documents[batch, row] == documents[batch, column])

    batch, time = documents.shape
    return create_block_mask(visible, batch, None, time, time, device=str(documents.device))


def columns_counted(attention: Hides, positions: Tensor) -> float:
    """Columns counted in a token's FLOPs, averaged over ``positions``: twice the visible ones, but at most all.

    A causal triangle thus counts as the full square: Chowdhery et al. 2022 (2204.02311), appendix B.
    """
    time = len(positions)
    if attention.sees_all(int(positions[-1]) + 1):
        return time
    visible = 0
    for rows in torch.split(positions, _ROWS_AT_ONCE):  # a square of booleans may be large
        mask = torch.broadcast_to(attention.visible(rows[:, None], positions), (len(rows), time))
        visible += int(mask.sum())
    return min(time, 2 * visible / time)
