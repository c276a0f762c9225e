"""Softmax attention that may look at nothing."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_gpt.models.attention import Backend, MultiHeadAttention, Sight, attention_pattern, attentions
from lightning_gpt.models.registry import Choice


@attentions.register("sink")
class SinkAttention(MultiHeadAttention):
    """A learned logit b of each head stands beside the scores and has no value: ``A_ij = e^S_ij / (e^b + Σ_k e^S_ik)``.

    OpenAI 2025 (gpt-oss, 2508.10925), section 2. With b = 0, where it starts, this is the softmax-off-by-one of
    Miller 2023, "Attention is off by one", and the SoftMax₁ of Xiao et al. 2023 (2309.17453), eq. 2: a head with
    nothing to say need not pour its weight on the first tokens. Rows of ``pattern`` sum to less than 1; what is missing
    went to the sink.

    Args:
        dim: Width of the residual stream.
        n_head: Number of heads.
        bias: Whether the projections have a bias.
        dropout: Probability of dropping an attention weight while training.
        backend: How the attention itself is computed.
        qk_norm: The norm of queries and keys.
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
        super().__init__(dim, n_head, bias=bias, dropout=dropout, backend=backend, qk_norm=qk_norm, n_kv_head=n_kv_head)
        self.null_logit = nn.Parameter(torch.zeros(n_head))

    def _weights(self, scores: Tensor, mask: Tensor) -> Tensor:
        null = self.null_logit.to(scores.dtype).view(-1, 1, 1).expand(*scores.shape[:-1], 1)
        return attention_pattern(torch.cat([null, scores], dim=-1), F.pad(mask, (1, 0), value=True))[..., 1:]

    def _kernel(self, q: Tensor, k: Tensor, v: Tensor, sight: Sight, dropout: float) -> Tensor:
        """A dimension more, 1 in the queries, makes b the score of a key that is 0 in all others and comes first."""
        width = q.shape[-1]
        null = (self.null_logit * math.sqrt(width)).to(k.dtype).view(1, -1, 1, 1).expand(len(k), -1, 1, 1)
        k = torch.cat([F.pad(null, (width, 0)), F.pad(k, (0, 1))], dim=-2)
        q, v = F.pad(q, (0, 1), value=1.0), F.pad(v, (0, 1, 1, 0))
        mask = sight.added(self)
        if mask is None and sight.n_row > 1:  # a query before the first keeps the kernel's causal triangle square
            mixed = F.scaled_dot_product_attention(
                F.pad(q, (0, 0, 1, 0)), k, v, dropout_p=dropout, is_causal=True, scale=1 / math.sqrt(width)
            )[..., 1:, :]
        else:
            mask = mask if mask is None else F.pad(mask, (1, 0), value=mask.dtype == torch.bool)
            mixed = F.scaled_dot_product_attention(
                q, k, v, attn_mask=mask, dropout_p=dropout, scale=1 / math.sqrt(width)
            )
        return mixed[..., :-1]
