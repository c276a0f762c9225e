"""What an attention pattern does, in one figure a head.

Every function takes patterns ``A`` of shape ``(..., time, keys)``, rows of sum 1, and gives ``(...)``. Where there are
more keys than tokens, the last ``time`` keys are the tokens themselves.
"""

import torch
from torch import Tensor


def attention_entropy(pattern: Tensor) -> Tensor:
    """Mean entropy of a row in nats: ``−1/t Σ_i Σ_j A_ij ln A_ij``, with 0 ln 0 = 0.

    Range: 0 (each token attends to one) to ln(keys), or under a causal mask :func:`uniform_causal_entropy`.
    Source: Zhai et al. 2023 (2303.06296), section 3, "attention entropy".
    """
    entropies: Tensor = torch.special.entr(pattern).sum(dim=-1)
    return entropies.mean(dim=-1)


def uniform_causal_entropy(time: int) -> float:
    """The entropy of causal attention that only averages, ``1/t Σ_i ln i`` over i = 1 … t: the most there can be."""
    return float(torch.arange(1, time + 1, dtype=torch.float64).log().mean())


def attention_distance(pattern: Tensor) -> Tensor:
    """Mean distance looked back, in tokens: ``1/t Σ_i Σ_j A_ij (i − j)``.

    Range: 0 (each token attends to itself) to (t − 1)/2 (all attend to the first). Source: Vig & Belinkov 2019
    (1906.04284), "attention distance".
    """
    time, keys = pattern.shape[-2:]
    rows = torch.arange(keys - time, keys, device=pattern.device)
    columns = torch.arange(keys, device=pattern.device)
    distance = (rows[:, None] - columns).abs().to(pattern.dtype)
    return (pattern * distance).sum(dim=-1).mean(dim=-1)


def first_token_share(pattern: Tensor) -> Tensor:
    """Mean weight on the first token, ``1/(t−1) Σ_{i≥2} A_i1``; the first row, which under causality is 1, left out.

    Range: 0 to 1; near 1 is the attention sink of Xiao et al. 2023 (2309.17453), section 3.1. Needs ``time >= 2``.
    """
    time, keys = pattern.shape[-2:]
    return pattern[..., 1:, keys - time].mean(dim=-1)
