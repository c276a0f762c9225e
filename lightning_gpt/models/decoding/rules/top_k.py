"""Top-k sampling."""

import torch
from torch import Tensor

from lightning_gpt.models.decoding.rules.rule import SamplingRule, TokenCounts, rules
from lightning_gpt.options import VocabSize


@rules.register("top_k")
class TopK(SamplingRule):
    """Keeps the ``k`` most likely tokens: Fan et al. 2018 (1805.04833).

    Args:
        k: How many.
    """

    def __init__(self, k: VocabSize) -> None:
        self.k = k

    def apply(self, logits: Tensor, counts: TokenCounts | None) -> Tensor:
        if self.k >= logits.shape[-1]:
            return logits
        # scatter the k winners rather than compare with the k-th: ties cannot let more than k through
        values, indices = logits.topk(self.k, dim=-1)
        return torch.full_like(logits, -torch.inf).scatter_(-1, indices, values)
