"""Softmax attention between unit vectors: nGPT's."""

from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_gpt.errors import CallError
from lightning_gpt.models.attention.mixer import attentions
from lightning_gpt.models.attention.multi_head import MultiHeadAttention
from lightning_gpt.models.context import Context
from lightning_gpt.models.layer import Cut
from lightning_gpt.models.norms import norms
from lightning_gpt.models.registry import Given


@attentions.register("spherical")
class SphericalAttention(MultiHeadAttention):
    """``softmax(√D q̂ k̂ᵀ) V`` with ``q̂ = s ⊙ Norm(q)`` and ``k̂ = s ⊙ Norm(k)`` after rotary positions.

    Loshchilov et al. 2024, "nGPT" (2410.01131), eq. 15 and 16; Norm is to length 1, s learned per head and dimension.
    Query heads that share their keys share their s. Each s is √dim times a parameter that starts at 1/√dim (section
    2.5).

    Args:
        dim: Width of the residual stream.
        qk_norm: Must be ``none``.
        shared: As in :class:`~lightning_gpt.models.attention.multi_head.MultiHeadAttention`, without ``score_width``.
    """

    can_scale_scores = False
    no_mup = "the factors of attention spherical are stored at 1/√dim, and their rates stay as they are"

    def __init__(self, dim: int, *, qk_norm: Given = "none", **shared: Any) -> None:
        super().__init__(dim, qk_norm="none", **shared)
        if norms.require(qk_norm).kind != "none":
            raise CallError("attention spherical norms queries and keys itself; use qk_norm none")
        if self.score_width is not None:
            raise CallError("attention spherical multiplies scores by √D, and has no score_width: leave it out")
        self.score_width = 1 / self.head_dim
        self.unit = dim**-0.5
        self.sharpness = nn.Parameter(torch.empty(self.n_kv_head * self.head_dim))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """1/√dim, which makes each s 1."""
        nn.init.constant_(self.sharpness, self.unit)

    def place(self, x: Tensor, norm: nn.Module, context: Context) -> Tensor:
        """Norm queries or keys ``(batch, heads, time, width)``, then rotate and scale them.

        A rotation keeps the length, so that the order is that of the paper; YaRN's factor is more than a rotation.
        """
        s: Tensor = (self.sharpness / self.unit).view(self.n_kv_head, 1, self.head_dim)
        unit = context.rotate(F.normalize(x, dim=-1), self.rotary)
        return unit * s.repeat_interleave(x.shape[1] // self.n_kv_head, dim=0).to(x.dtype)

    def cut(self) -> Cut | None:
        cut = super().cut()
        return None if cut is None else replace(cut, along={"sharpness": 0})
