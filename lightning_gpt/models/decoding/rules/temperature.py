"""Temperature: how far the likely tokens are preferred."""

import torch
from torch import Tensor

from lightning_gpt.models.decoding.rules.rule import SamplingRule, TokenCounts, rules
from lightning_gpt.models.double import double
from lightning_gpt.options import NotNegative


@rules.register("temperature")
class Temperature(SamplingRule):
    """``logits / T``; at T = 0, only the most likely token is left.

    Args:
        temperature: T.
    """

    def __init__(self, temperature: NotNegative) -> None:
        self.temperature = temperature

    def apply(self, logits: Tensor, counts: TokenCounts | None) -> Tensor:
        if self.temperature == 0:
            first = logits.argmax(dim=-1, keepdim=True)
            return torch.full_like(logits, -torch.inf).scatter_(-1, first, 0.0)
        # relative to the largest and in fp64, so that tiny temperatures do not overflow
        return (double(logits - logits.amax(dim=-1, keepdim=True)) / self.temperature).float().to(logits.device)
