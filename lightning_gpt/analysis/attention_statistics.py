"""What an attention pattern does, as one number per head.

Every function takes patterns ``A`` ``(..., time, keys)`` and returns ``(...)``. Rows sum to 1 after a plain softmax, to
less with a sink, whose share is of no key, and in other kinds, such as ``shaped``, to what their formula gives. Where
there are more keys than tokens, the last ``time`` keys are the tokens.
"""

import torch
from torch import Tensor


def attention_entropy(pattern: Tensor) -> Tensor:
    """Mean entropy of a row in nats: ``−1/t Σ_i Σ_j A_ij ln A_ij``, with 0 ln 0 = 0.

    Range: 0 (each token attends to one key) to ln(keys), or to :func:`uniform_causal_entropy` under a causal mask.
    Source: Zhai et al. 2023 (2303.06296), section 3, "attention entropy".
    """
    entropies: Tensor = torch.special.entr(pattern).sum(dim=-1)
    return entropies.mean(dim=-1)


def uniform_causal_entropy(time: int) -> float:
    """The largest entropy of causal attention, reached by uniform rows: ``1/t Σ_i ln i`` over i = 1 … t, in nats."""
    return float(torch.arange(1, time + 1, dtype=torch.float64, device="cpu").log().mean())


def attention_distance(pattern: Tensor) -> Tensor:
    """Mean distance looked back, in tokens: ``1/t Σ_i Σ_j A_ij (i − j)``.

    Range: 0 (each token attends to itself) to (t − 1)/2 (all attend to the first token). Source: Vig & Belinkov 2019
    (1906.04284), "attention distance".
    """
    time, keys = pattern.shape[-2:]
    rows = torch.arange(keys - time, keys, device=pattern.device)
    columns = torch.arange(keys, device=pattern.device)
    distance = (rows[:, None] - columns).abs().to(pattern.dtype)
    return (pattern * distance).sum(dim=-1).mean(dim=-1)


def first_token_share(pattern: Tensor) -> Tensor:
    """Mean weight on the first token, ``1/(t−1) Σ_{i≥2} A_i1``, without the first row, whose weight is always 1.

    Range: 0 to 1; near 1 is the attention sink of Xiao et al. 2023 (2309.17453), section 3.1. Where documents are kept
    apart, tokens of later documents do not see that token, and count with 0. Needs ``time >= 2``.
    """
    time, keys = pattern.shape[-2:]
    return pattern[..., 1:, keys - time].mean(dim=-1)
