"""Attention whose queries, and whose keys, are normed over all heads together."""

from typing import Any

from torch import Tensor, nn

from lightning_gpt.models.attention.mixer import attentions
from lightning_gpt.models.attention.multi_head import MultiHeadAttention
from lightning_gpt.models.context import Context
from lightning_gpt.models.layer import Cut
from lightning_gpt.models.norms import norms
from lightning_gpt.models.registry import Given


@attentions.register("joint_norm")
class JointNormAttention(MultiHeadAttention):
    """``qk_norm`` acts on the queries of all heads as one vector, and on the keys of all heads likewise.

    OLMo et al. 2024 (2501.00656), section 2.1, after Dehghani et al. 2023 (2302.05442), section 2: a head's queries may
    then be longer than another's.

    Args:
        qk_norm: The norm; without one this is ``full``.
        shared: As in :class:`~lightning_gpt.models.attention.multi_head.MultiHeadAttention`.
    """

    def __init__(self, *, qk_norm: Given = "none", **shared: Any) -> None:
        super().__init__(qk_norm="none", **shared)
        self.q_norm = norms.make(qk_norm, dim=self.n_head * self.head_dim, bias=False)
        self.k_norm = norms.make(qk_norm, dim=self.n_kv_head * self.head_dim, bias=False)

    def place(self, x: Tensor, norm: nn.Module, context: Context) -> Tensor:
        """Norm queries or keys ``(batch, heads, time, width)`` over all heads, then rotate them."""
        merged = norm(x.transpose(1, 2).flatten(2))
        return context.rotate(merged.view(*merged.shape[:2], x.shape[1], -1).transpose(1, 2), self.rotary)

    def cut(self) -> Cut | None:
        """Refused: the norm needs all heads."""
        return None
