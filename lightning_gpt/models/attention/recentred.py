"""Attention with the uniform average taken off, against over-smoothing: ``α I + β A − γ C``.

A is the softmax, C what it would be if all scores were equal: row i is 1 over the number of tokens that i sees. An
average makes tokens alike; these kinds take it off, or strengthen what is not the average.
"""

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn

from lightning_gpt.models.attention.multi_head import MultiHeadAttention, Sight, attentions


class RecentredAttention(MultiHeadAttention, ABC):
    """``(α I + β A − γ C) V``, with numbers by head that a variant makes of its parameters.

    Intermediates: ``pattern`` is the whole ``α I + β A − γ C``, so its rows sum to α + β − γ and entries may be
    negative. By the formula, dropout drops entries of it; the kernel drops those of A.
    """

    @abstractmethod
    def shares(self) -> tuple[Tensor | None, Tensor, Tensor]:
        """α (None for 0), β and γ, each ``(n_head, 1, 1)``."""

    def _pattern(self, q: Tensor, k: Tensor, sight: Sight) -> Tensor:
        identity, softmax, uniform = self.shares()
        mask, scores = self._mask(sight), self._scores("scores", q, k, sight)
        pattern = softmax * self._weights(scores, mask) - uniform * _evenly(mask, scores.dtype)
        if identity is not None:
            pattern = pattern + identity * _own(sight, mask)
        return self.see("pattern", pattern)  # (B, H, T, T)

    def _kernel(self, q: Tensor, k: Tensor, v: Tensor, sight: Sight, dropout: float) -> Tensor:
        identity, softmax, uniform = self.shares()
        mask = sight.mask(self)
        mixed = softmax * super()._kernel(q, k, v, sight, dropout) - uniform * _average(v, mask, sight)
        if identity is None:
            return mixed
        if sight.is_whole or sight.context.documents is not None:  # no earlier tokens: the values are the rows' own
            return mixed + identity * v
        return mixed + identity * (_own(sight, sight.all_before() if mask is None else mask).to(v.dtype) @ v)


def _evenly(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """C from what is seen: rows of equal weights that sum to 1."""
    return mask.to(dtype) / mask.sum(dim=-1, keepdim=True).clamp(min=1)


def _average(v: Tensor, mask: Tensor | None, sight: Sight) -> Tensor:
    """``C V``, by a running sum where plain causality is all that hides."""
    if mask is not None:
        return _evenly(mask, v.dtype) @ v
    if sight.n_row == 1:
        return v.mean(dim=-2, keepdim=True)
    seen = torch.arange(1, sight.n_row + 1, device=v.device)[:, None]
    return (v.cumsum(dim=-2, dtype=torch.promote_types(v.dtype, torch.float32)) / seen).to(v.dtype)


def _own(sight: Sight, mask: Tensor) -> Tensor:
    """The identity: each row's own column, booleans."""
    own = sight.rows[..., :, None] == sight.columns[..., None, :]
    return (own[:, None] if own.ndim == 3 else own) & mask


@attentions.register("shaped")
class ShapedAttention(RecentredAttention):
    """``(α I + β A − γ C) V``, α, β and γ learned for each head from 1 on: a layer starts near the identity.

    Noci et al. 2023 (2306.17759) take the centred softmax beside the identity; with C for causal attention and learned
    numbers it is He & Hofmann 2023 (2311.01906), eq. 5, who set the queries' weights to 0 at the start, so that A = C.
    Here they start small, like all weights, and A near C.

    Args:
        shared: As in :class:`~lightning_gpt.models.attention.multi_head.MultiHeadAttention`.
    """

    def __init__(self, **shared: Any) -> None:
        super().__init__(**shared)
        self.identity_share = nn.Parameter(torch.ones(self.n_head))
        self.softmax_share = nn.Parameter(torch.ones(self.n_head))
        self.uniform_share = nn.Parameter(torch.ones(self.n_head))

    def shares(self) -> tuple[Tensor | None, Tensor, Tensor]:
        """α, β and γ, all learned."""
        return _by_head(self.identity_share), _by_head(self.softmax_share), _by_head(self.uniform_share)


@attentions.register("attn_scale")
class AttnScale(RecentredAttention):
    """``(C + (1 + ω)(A − C)) V``, ω learned for each head from 0 on: what is not the average is amplified.

    Wang et al. 2022 (2203.05962), section 4, AttnScale, whose C is ``11ᵀ/n``; here the causal average.

    Args:
        shared: As in :class:`~lightning_gpt.models.attention.multi_head.MultiHeadAttention`.
    """

    def __init__(self, **shared: Any) -> None:
        super().__init__(**shared)
        self.omega = nn.Parameter(torch.zeros(self.n_head))

    def shares(self) -> tuple[Tensor | None, Tensor, Tensor]:
        """No identity, 1 + ω and ω."""
        return None, _by_head(1 + self.omega), _by_head(self.omega)


def _by_head(numbers: Tensor) -> Tensor:
    return numbers.view(-1, 1, 1)
