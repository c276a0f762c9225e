"""Attention with the uniform average subtracted, against over-smoothing: ``α I + β A − γ C``.

A is the softmax; C is what it would be if all scores were equal: row i is 1 over the number of tokens that i sees.
Averaging makes tokens alike; these kinds subtract the average, or amplify the rest.
"""

from abc import ABC, abstractmethod
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from lightning_gpt.models.attention.mask import AttentionMask
from lightning_gpt.models.attention.mixer import attentions
from lightning_gpt.models.attention.multi_head import MultiHeadAttention
from lightning_gpt.models.layer import Cut


class RecentredAttention(MultiHeadAttention, ABC):
    """``(α I + β A − γ C) V`` with per-head scalars that subclasses compute from their parameters.

    Intermediates: ``pattern`` is the whole ``α I + β A − γ C``, so its rows sum to α + β − γ and entries may be
    negative. With ``manual``, dropout drops entries of it; the fused kernel drops entries of A.
    """

    @abstractmethod
    def shares(self) -> tuple[Tensor | None, Tensor, Tensor]:
        """α (None for 0), β and γ, each ``(n_head, 1, 1)``."""

    def _pattern(self, q: Tensor, k: Tensor, seen: AttentionMask) -> Tensor:
        identity, softmax, uniform = self.shares()
        mask, scores = self.see("mask", seen.as_matrix()), self._scores("scores", q, k, seen)
        pattern = softmax * self._weights(scores, mask) - uniform * _evenly(mask, scores.dtype)
        if identity is not None:
            pattern = pattern + identity * _own(seen, mask)
        return self.see("pattern", pattern)  # (B, H, T, T)

    def _kernel(self, q: Tensor, k: Tensor, v: Tensor, seen: AttentionMask, dropout: float) -> Tensor:
        identity, softmax, uniform = self.shares()
        mixed = softmax * super()._kernel(q, k, v, seen, dropout) - uniform * _average(v, seen)
        if identity is None:
            return mixed
        if seen.has_same_tokens or seen.has_no_past:  # each key is its own query's token
            return mixed + identity * v
        return mixed + identity * (_own(seen, seen.as_matrix()).to(v.dtype) @ v)


def _evenly(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """C from the mask: rows of equal weights that sum to 1."""
    return mask.to(dtype) / mask.sum(dim=-1, keepdim=True).clamp(min=1)


def _average(v: Tensor, seen: AttentionMask) -> Tensor:
    """``C V``, by a running sum if the mask is plainly causal."""
    if not seen.is_plain:
        return _evenly(seen.as_matrix(), v.dtype) @ v
    if seen.n_row == 1:
        return v.mean(dim=-2, keepdim=True)
    count = torch.arange(1, seen.n_row + 1, device=v.device)[:, None]
    return (v.cumsum(dim=-2, dtype=torch.promote_types(v.dtype, torch.float32)) / count).to(v.dtype)


def _own(seen: AttentionMask, mask: Tensor) -> Tensor:
    """The identity as booleans: each row's own column."""
    own = seen.row_positions()[..., :, None] == seen.column_positions()[..., None, :]
    return (own[:, None] if own.ndim == 3 else own) & mask


@attentions.register("shaped")
class ShapedAttention(RecentredAttention):
    """``(α I + β A − γ C) V`` with α, β and γ learned per head, initially 1: a layer starts near the identity.

    Noci et al. 2023 (2306.17759) add the centred softmax to the identity. With C for causal attention and learned
    scalars this is He & Hofmann 2023 (2311.01906), eq. 5, who initialise the query weights to 0, so that A = C. Here
    they start small, like all weights, so that A is near C.

    Args:
        shared: As in :class:`~lightning_gpt.models.attention.multi_head.MultiHeadAttention`.
    """

    def __init__(self, **shared: Any) -> None:
        super().__init__(**shared)
        self.identity_share = nn.Parameter(torch.empty(self.n_head))
        self.softmax_share = nn.Parameter(torch.empty(self.n_head))
        self.uniform_share = nn.Parameter(torch.empty(self.n_head))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set all three to 1."""
        for share in (self.identity_share, self.softmax_share, self.uniform_share):
            nn.init.ones_(share)

    def cut(self) -> Cut | None:
        cut, shares = super().cut(), ("identity_share", "softmax_share", "uniform_share")
        return None if cut is None else replace(cut, along=dict.fromkeys(shares, 0))

    def shares(self) -> tuple[Tensor | None, Tensor, Tensor]:
        """α, β and γ, all learned."""
        return _by_head(self.identity_share), _by_head(self.softmax_share), _by_head(self.uniform_share)


@attentions.register("attn_scale")
class AttnScale(RecentredAttention):
    """``(C + (1 + ω)(A − C)) V`` with ω learned per head, initially 0: amplifies what differs from the average.

    Wang et al. 2022 (2203.05962), section 4, AttnScale; its C is ``11ᵀ/n``, here it is the causal average.

    Args:
        shared: As in :class:`~lightning_gpt.models.attention.multi_head.MultiHeadAttention`.
    """

    def __init__(self, **shared: Any) -> None:
        super().__init__(**shared)
        self.omega = nn.Parameter(torch.empty(self.n_head))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """ω = 0: plain attention."""
        nn.init.zeros_(self.omega)

    def cut(self) -> Cut | None:
        cut = super().cut()
        return None if cut is None else replace(cut, along={"omega": 0})

    def shares(self) -> tuple[Tensor | None, Tensor, Tensor]:
        """No identity, 1 + ω and ω."""
        return None, _by_head(1 + self.omega), _by_head(self.omega)


def _by_head(numbers: Tensor) -> Tensor:
    return numbers.view(-1, 1, 1)
