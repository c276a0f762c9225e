"""The largest score of each head since it was last asked for, beside whichever kernel computes the attention."""

import torch
from torch import Tensor

from lightning_gpt.models.attention.formula import CausalAttention
from lightning_gpt.models.context import Context

_SCORES_AT_ONCE = 4_000_000


class LargestScores:
    """The largest ``q_i·k_j / √d`` of each head over all i and the j that i sees, before any bias or bound.

    It is computed beside the attention, in pieces, so that not all scores are held: one more product of queries and
    keys.

    Args:
        n_head: Number of heads.
        like: A weight of the layer.
    """

    def __init__(self, n_head: int, like: Tensor) -> None:
        dtype = torch.promote_types(like.dtype, torch.float32)
        self.found = torch.full((n_head,), -torch.inf, dtype=dtype, device=like.device)

    def take(self) -> Tensor:
        """The largest scores ``(n_head,)`` since the last call; −∞ where there was none."""
        found = self.found.clone()
        self.found.fill_(-torch.inf)
        return found

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    @torch.no_grad()
    def look(self, attention: CausalAttention, q: Tensor, k: Tensor, columns: Tensor | None, context: Context) -> None:
        """Update the largest scores from one pass.

        Args:
            attention: The layer.
            q: Queries ``(batch, n_head, rows, width)``.
            k: Keys ``(batch, n_kv_head, columns, width)``.
            columns: Positions of the keys, ``(columns,)`` or ``(batch, columns)``; None for 0, 1, 2, ...
            context: The queries' positions and documents.
        """
        n_row, n_column = q.shape[-2], k.shape[-2]
        if k.shape[1] != q.shape[1]:
            k = k.repeat_interleave(q.shape[1] // k.shape[1], dim=1)
        rows = context.numbered(n_row, q.device)
        columns = torch.arange(n_column, device=q.device) if columns is None else columns
        of_keys, documents = context.key_documents, context.documents
        size = max(1, _SCORES_AT_ONCE // (len(q) * q.shape[1] * n_column))
        for start in range(0, n_row, size):
            place = slice(start, start + size)
            seen = attention.visible(rows[..., place, None], columns[..., None, :]) & (columns >= 0)[..., None, :]
            if documents is not None and of_keys is not None:
                seen = seen & (documents[:, place, None] == of_keys[:, None, :])
            seen = seen[:, None] if seen.ndim == 3 else seen
            scores = attention.scores_to_bound(q[..., place, :], k).masked_fill(~seen, -torch.inf)
            torch.maximum(self.found, scores.amax(dim=(0, 2, 3)).to(self.found.dtype), out=self.found)
