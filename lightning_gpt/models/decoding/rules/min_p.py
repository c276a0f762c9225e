"""Min-p sampling."""

import torch
from torch import Tensor

from lightning_gpt.models.decoding.rules.rule import SamplingRule, TokenCounts, rules
from lightning_gpt.options import Share


@rules.register("min_p")
class MinP(SamplingRule):
    """Keeps tokens that are at least ``p`` times as likely as the most likely one: Nguyen et al. 2024 (2407.01082).

    Args:
        p: The share of the largest probability.
    """

    def __init__(self, p: Share) -> None:
        self.p = p

    def apply(self, logits: Tensor, counts: TokenCounts | None) -> Tensor:
        probabilities = logits.softmax(dim=-1)
        return logits.masked_fill(probabilities < self.p * probabilities.amax(dim=-1, keepdim=True), -torch.inf)
