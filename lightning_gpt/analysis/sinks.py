"""Attention sinks: tokens that most heads attend to whatever the text.

Gu et al. 2024, "When Attention Sink Emerges in Language Models" (2410.10781), section 3.
"""

import torch
from torch import Tensor

from lightning_gpt.analysis.patterns import attention_patterns
from lightning_gpt.models import LanguageModel
from lightning_gpt.models.double import double

THRESHOLD = 0.3
"""ε of the paper: a head with at least this much of its attention on a token has a sink there."""


def key_importance(pattern: Tensor) -> Tensor:
    """Mean attention that each token receives from itself and the later ones, ``(..., time)``.

    ``α_k = 1/(t − k + 1) Σ_{i≥k} A_ik`` of a pattern ``(..., time, keys)``, tokens counted from 1. Where there are more
    keys than tokens, the last ``time`` keys are the tokens. Range: 0 to 1. Source: section 3.1.
    """
    time = pattern.shape[-2]
    received = pattern[..., -time:].sum(dim=-2)
    return received / torch.arange(time, 0, -1, dtype=pattern.dtype, device=pattern.device)


def sink_scores(model: LanguageModel, ids: Tensor, position: int = 0) -> list[Tensor | None]:
    """Importance α of the token at ``position`` for each head, averaged over the rows of ``ids`` ``(batch, time)``.

    Returns:
        ``(n_head,)`` per block; None for a block without softmax attention.
    """
    patterns = attention_patterns(model, ids)
    return [None if p is None else key_importance(p)[..., position].mean(dim=0) for p in patterns]


def sink_rate(scores: list[Tensor | None], threshold: float = THRESHOLD) -> float:
    """Share of the heads with a sink, ``mean 1[α > ε]`` over all blocks and heads; section 3.1, eq. for Sink_k^ε.

    nan if no block has softmax attention.
    """
    heads = [score for score in scores if score is not None]
    return float(double(torch.cat(heads) > threshold).mean()) if heads else float("nan")
