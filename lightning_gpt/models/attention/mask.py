"""What the tokens of a pass see in one layer: the mask and the position scheme's bias, made only where needed."""

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
"""Where ``flex_attention`` has a kernel that is faster than a mask for the fused one."""
_NARROWEST_FLEX_HEAD = 16
_ROWS_AT_ONCE = 512


def causal_mask(time: int, device: torch.device | None = None) -> Tensor:
    """``(time, time)`` booleans: row i may attend to column j where ``j <= i``."""
    return torch.ones(time, time, dtype=torch.bool, device=device).tril()


@cache
def compiled_flex_attention() -> Callable[..., Tensor]:
    """``flex_attention`` is a kernel only when compiled; made when first used, because compiling takes seconds."""
    compiled: Callable[..., Tensor] = torch.compile(flex_attention)
    return compiled


class Hides(Protocol):
    """A layer of attention, as far as its mask asks for one."""

    @property
    def mask_key(self) -> Hashable:
        """Layers of one key hide the same."""

    def visible(self, rows: Tensor, columns: Tensor) -> Tensor:
        """Whether tokens at the positions ``rows`` see those at ``columns``."""

    def sees_all(self, time: int) -> bool:
        """Whether each of the first ``time`` positions sees all before it."""


@dataclass(frozen=True)
class AttentionMask:
    """What ``n_row`` queries see of ``n_column`` keys.

    Args:
        attention: The layer.
        context: Where the rows stand.
        columns: Where the keys stand, ``(columns,)`` or ``(batch, columns)``, −1 for none; None for 0, 1, 2, ...
        n_row: Number of queries in a row of the batch.
        n_column: Number of keys.
        has_heads: Whether queries have a dimension of heads.
        dtype: Of the queries.
        device: Of the queries.
        is_plain: Whether nothing but the future is hidden, so that the kernel's own causal mask will do.
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
    def is_whole(self) -> bool:
        """Whether the keys are those of the queries' tokens, so that a token's index tells its neighbours."""
        return self.columns is None and self.n_row == self.n_column

    @property
    def key(self) -> Hashable:
        """What tells this mask from others of the pass."""
        return self.attention.mask_key, self.n_row, self.n_column

    def row_positions(self) -> Tensor:
        """Positions of the queries."""
        return self.context.numbered(self.n_row, self.device)

    def column_positions(self) -> Tensor:
        """Positions of the keys."""
        return torch.arange(self.n_column, device=self.device) if self.columns is None else self.columns

    def as_matrix(self) -> Tensor:
        """What is seen, as booleans ``(rows, columns)`` or ``(batch, 1, rows, columns)``."""
        if not self.is_plain:
            return self.context.shared.masks.made(self.key, self._make)
        if self.n_row == self.n_column:
            return causal_mask(self.n_row, self.device)
        return torch.ones(self.n_row, self.n_column, dtype=torch.bool, device=self.device)

    def _make(self) -> Tensor:
        rows, columns, documents = self.row_positions(), self.column_positions(), self.context.documents
        mask = self.attention.visible(rows[..., :, None], columns[..., None, :]) & (columns >= 0)[..., None, :]
        if documents is not None:
            mask = mask & (documents[:, :, None] == documents[:, None, :])
        return mask[:, None] if self.has_heads and mask.ndim == 3 else mask

    @property
    def bias_scheme(self) -> Positions | None:
        """The position scheme, where it adds to the scores."""
        scheme = self.context.scheme
        return scheme if scheme is not None and scheme.biases else None

    def bias(self) -> Tensor | None:
        """What the position scheme adds to the scores, ``(n_head, rows, columns)`` or with a batch before it."""
        scheme = self.bias_scheme
        return None if scheme is None else scheme.bias(self.row_positions(), self.column_positions(), self.dtype)

    def added(self) -> Tensor:
        """Mask and bias as the fused kernel takes them: booleans, or what is added to the scores."""
        if self.bias_scheme is None:
            return self.as_matrix()
        return self.masked_bias(self.key, lambda: (self.row_positions(), self.column_positions(), self.as_matrix()))

    def masked_bias(self, key: Hashable, seen: Callable[[], tuple[Tensor, Tensor, Tensor]]) -> Tensor:
        """What the position scheme adds where a token is seen, −∞ elsewhere; made once a pass where it is not learned.

        Args:
            key: What tells this mask from the others of the pass.
            seen: Gives the positions of rows and columns, and the mask.
        """
        scheme = self.bias_scheme
        assert scheme is not None

        def make() -> Tensor:
            rows, columns, mask = seen()
            return scheme.bias(rows, columns, self.dtype).masked_fill(~mask, -torch.inf)

        if any(parameter.requires_grad for parameter in scheme.parameters()):
            return make()  # each layer's own, so that a layer can be run again for its gradient
        return self.context.shared.biases.made((key, self.dtype), make)

    def suits_flex(self, head_dim: int) -> bool:
        """Whether the kernel that skips whole blocks serves: documents alone hide, in heads that are wide enough."""
        has_kernel = self.device.type in FLEX_DEVICES and self.has_heads and head_dim >= _NARROWEST_FLEX_HEAD
        hidden_by_documents = self.context.documents is not None and self.attention.sees_all(self.n_column)
        return has_kernel and hidden_by_documents and self.bias_scheme is None and self.is_whole_pass

    @property
    def is_whole_pass(self) -> bool:
        """Whether the queries' own tokens are all that is looked at, and no earlier ones from a cache."""
        return self.context.state is None and self.n_row == self.n_column

    def document_blocks(self) -> BlockMask:
        """The mask that keeps documents apart, for the kernel that skips whole blocks that are hidden."""
        documents = self.context.documents
        assert documents is not None
        blocks: BlockMask = self.context.shared.layouts.made("document blocks", lambda: document_block_mask(documents))
        return blocks


def document_block_mask(documents: Tensor) -> BlockMask:
    """Causality within documents ``(batch, time)`` for ``flex_attention``, which holds no ``time × time`` matrix."""

    def visible(batch: Tensor, _head: Tensor, row: Tensor, column: Tensor) -> Tensor:
        return (row >= column) & (documents[batch, row] == documents[batch, column])

    batch, time = documents.shape
    return create_block_mask(visible, batch, None, time, time, device=str(documents.device))


def columns_counted(attention: Hides, positions: Tensor) -> float:
    """Columns counted for a token's FLOPs, mean over tokens at ``positions``: twice the visible ones, at most all.

    A causal triangle then counts as its whole square: Chowdhery et al. 2022 (2204.02311), appendix B.
    """
    time = len(positions)
    if attention.sees_all(int(positions[-1]) + 1):
        return time
    visible = 0
    for rows in torch.split(positions, _ROWS_AT_ONCE):  # a square of booleans may be large
        mask = torch.broadcast_to(attention.visible(rows[:, None], positions), (len(rows), time))
        visible += int(mask.sum())
    return min(time, 2 * visible / time)
