"""Softmax attention that keeps its sharpness as the text grows."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from lightning_gpt.models.attention.mixer import attentions
from lightning_gpt.models.attention.multi_head import MultiHeadAttention
from lightning_gpt.models.context import Context
from lightning_gpt.models.layer import Cut
from lightning_gpt.options import Positive


@attentions.register("scalable")
class ScalableAttention(MultiHeadAttention):
    """``A_ij = n^(s z_ij) / Σ_k n^(s z_ik)``, z the scaled scores, n = i + 1 the tokens that token i sees: SSMax.

    Nakanishi 2025, "Scalable-Softmax Is Superior for Attention" (2501.19399), eq. 2, with s learned per head and
    without the optional bias. It equals a softmax of ``s ln(n) z``, and is computed by scaling the queries. A plain
    softmax flattens as n grows, because its largest score does not.

    Args:
        initial: Initial s. The paper's 0.168 is about the inverse of the mean of ln n over 1,024 tokens, so that
            training starts near a plain softmax.
        shared: As in :class:`~lightning_gpt.models.attention.multi_head.MultiHeadAttention`.
    """

    def __init__(self, *, initial: Positive = 0.168, **shared: Any) -> None:
        super().__init__(**shared)
        self.initial = initial
        self.sharpness = nn.Parameter(torch.empty(self.n_head))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set s to its initial value."""
        nn.init.constant_(self.sharpness, self.initial)

    def heads(self, x: Tensor, context: Context) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = super().heads(x, context)
        seen = context.numbered(x.shape[1], x.device) + 1  # (T,) or (B, T)
        logs = seen.to(torch.promote_types(x.dtype, torch.float32)).log()
        factors = self.sharpness[:, None] * logs[..., None, :]  # (H, T) or (B, H, T)
        return q * factors[..., None].to(q.dtype), k, v

    def cut(self) -> Cut | None:
        cut = super().cut()
        return None if cut is None else replace(cut, along={"sharpness": 0})
