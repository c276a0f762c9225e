"""Nucleus sampling."""

import torch
from torch import Tensor

from lightning_gpt.models.decoding.rules.rule import SamplingRule, TokenCounts, rules
from lightning_gpt.options import ShareAboveZero


@rules.register("top_p")
class TopP(SamplingRule):
    """Keeps the smallest set of tokens whose total probability reaches ``p``.

    Holtzman et al. 2020 (1904.09751), section 3.1.

    Args:
        p: The probability to reach; 1 keeps all.
    """

    def __init__(self, p: ShareAboveZero) -> None:
        self.p = p

    def apply(self, logits: Tensor, counts: TokenCounts | None) -> Tensor:
        if self.p == 1:
            return logits
        ordered, indices = logits.softmax(dim=-1).sort(dim=-1, descending=True)
        reached_before = ordered.cumsum(dim=-1) - ordered >= self.p
        reached_before[..., 0] = False  # the most likely token stays, also if p is 0 in fp32
        return logits.masked_fill(torch.zeros_like(reached_before).scatter_(-1, indices, reached_before), -torch.inf)
