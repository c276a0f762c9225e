"""Softmax attention that may look at nothing."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_gpt.models.attention.formula import attention_pattern
from lightning_gpt.models.attention.mask import AttentionMask
from lightning_gpt.models.attention.mixer import attentions
from lightning_gpt.models.attention.multi_head import MultiHeadAttention


@attentions.register("sink")
class SinkAttention(MultiHeadAttention):
    """A learned logit b of each head stands beside the scores and has no value: ``A_ij = e^S_ij / (e^b + Σ_k e^S_ik)``.

    OpenAI 2025 (gpt-oss, 2508.10925), section 2. With b = 0, where it starts, this is the softmax-off-by-one of
    Miller 2023, "Attention is off by one", and the SoftMax₁ of Xiao et al. 2023 (2309.17453), eq. 2: a head with
    nothing to say need not pour its weight on the first tokens. Rows of ``pattern`` sum to less than 1; what is missing
    went to the sink.

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

    def _weights(self, scores: Tensor, mask: Tensor) -> Tensor:
        null = self.null_logit.to(scores.dtype).view(-1, 1, 1).expand(*scores.shape[:-1], 1)
        return attention_pattern(torch.cat([null, scores], dim=-1), F.pad(mask, (1, 0), value=True))[..., 1:]

    def _kernel(self, q: Tensor, k: Tensor, v: Tensor, seen: AttentionMask, dropout: float) -> Tensor:
        """A dimension more, 1 in the queries, makes b the score of a key that is 0 in all others and comes first."""
        width = q.shape[-1]
        null = (self.null_logit * math.sqrt(width)).to(k.dtype).view(1, -1, 1, 1).expand(len(k), -1, 1, 1)
        k = torch.cat([F.pad(null, (width, 0)), F.pad(k, (0, 1))], dim=-2)
        q, v = F.pad(q, (0, 1), value=1.0), F.pad(v, (0, 1, 1, 0))
        plain = seen.is_plain and seen.bias_scheme is None
        if plain and seen.n_row > 1:  # a query before the first keeps the kernel's causal triangle square
            mixed = F.scaled_dot_product_attention(
                F.pad(q, (0, 0, 1, 0)), k, v, dropout_p=dropout, is_causal=True, scale=1 / math.sqrt(width)
            )[..., 1:, :]
        else:
            mask = None if plain else seen.added()
            mask = mask if mask is None else F.pad(mask, (1, 0), value=mask.dtype == torch.bool)
            mixed = F.scaled_dot_product_attention(
                q, k, v, attn_mask=mask, dropout_p=dropout, scale=1 / math.sqrt(width)
            )
        return mixed[..., :-1]
