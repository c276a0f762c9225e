"""Softmax attention that can attend to nothing."""

from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_gpt.models.attention.formula import attention_pattern
from lightning_gpt.models.attention.local import WindowAttention
from lightning_gpt.models.attention.mask import AttentionMask
from lightning_gpt.models.attention.mixer import attentions
from lightning_gpt.models.attention.multi_head import MultiHeadAttention
from lightning_gpt.models.layer import Cut


@attentions.register("sink")
class SinkAttention(MultiHeadAttention):
    """Adds a learned logit b per head to the scores, without a value: ``A_ij = e^S_ij / (e^b + Σ_k e^S_ik)``.

    OpenAI 2025 (gpt-oss, 2508.10925), section 2. At its initial value b = 0, this is the softmax-off-by-one of Miller
    2023, "Attention is off by one", and the SoftMax₁ of Xiao et al. 2023 (2309.17453), eq. 2: a head that needs no
    token does not have to put its weight on the first ones. Rows of ``pattern`` sum to less than 1; the rest goes to
    the sink.

    Args:
        shared: As in :class:`~lightning_gpt.models.attention.multi_head.MultiHeadAttention`.
    """

    def __init__(self, **shared: Any) -> None:
        super().__init__(**shared)
        self.null_logit = nn.Parameter(torch.empty(self.n_head))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """b = 0."""
        nn.init.zeros_(self.null_logit)

    def cut(self) -> Cut | None:
        cut = super().cut()
        return None if cut is None else replace(cut, along={"null_logit": 0})

    def _weights(self, scores: Tensor, mask: Tensor) -> Tensor:
        null = self.null_logit.to(scores.dtype).view(-1, 1, 1).expand(*scores.shape[:-1], 1)
        return attention_pattern(torch.cat([null, scores], dim=-1), F.pad(mask, (1, 0), value=True))[..., 1:]

    def _kernel(self, q: Tensor, k: Tensor, v: Tensor, seen: AttentionMask, dropout: float) -> Tensor:
        width, scale = q.shape[-1], self.scale_for(q)
        q, k, v = self._with_null(q, k, v)
        plain = seen.is_plain and seen.bias_scheme is None
        if plain and seen.n_row > 1:  # an extra first query keeps the kernel's causal mask square
            mixed = F.scaled_dot_product_attention(
                F.pad(q, (0, 0, 1, 0)), k, v, dropout_p=dropout, is_causal=True, scale=scale
            )[..., 1:, :]
        else:
            mask = None if plain else seen.added()
            mask = mask if mask is None else F.pad(mask, (1, 0), value=mask.dtype == torch.bool)
            mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout, scale=scale)
        return mixed[..., :width]

    def _with_null(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Add a first key whose score is b: it has √d·b in an extra dimension, where queries are 1, and 0 elsewhere.

        Each is ``(batch, head, ..., tokens, width)``.
        """
        width = q.shape[-1]
        null = (self.null_logit / self.scale_for(q)).to(k.dtype).view(1, -1, *[1] * (k.ndim - 2))
        first = F.pad(null.expand(*k.shape[:-2], 1, 1), (width, 0))
        return F.pad(q, (0, 1), value=1.0), torch.cat([first, F.pad(k, (0, 1))], dim=-2), F.pad(v, (0, 1, 1, 0))


@attentions.register("sink_window")
class WindowedSinkAttention(WindowAttention, SinkAttention):
    """``sink`` over the last ``window`` tokens, as every second layer of gpt-oss: OpenAI 2025 (2508.10925), section 2.

    Args:
        shared: As in :class:`~lightning_gpt.models.attention.local.WindowAttention`.
    """

    def beside(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return *self._with_null(q, k, v), F.pad(mask, (1, 0), value=mask.dtype == torch.bool)
