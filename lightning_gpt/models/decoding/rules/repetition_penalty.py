"""The penalty on tokens that the text already holds, as a factor."""

import torch
from torch import Tensor

from lightning_gpt.models.decoding.rules.rule import PenaltyFactor, SamplingRule, TokenCounts, rules


@rules.register("repetition_penalty")
class RepetitionPenalty(SamplingRule):
    """Divides positive logits of tokens in the prompt or drawn since by ``penalty``, and multiplies negative ones.

    Keskar et al. 2019 (1909.05858), section 4.1, with the rule for negative logits that came into use since.

    Args:
        penalty: Above 1 discourages repetition, below 1 encourages it.
    """

    reads_text = True

    def __init__(self, penalty: PenaltyFactor) -> None:
        self.penalty = penalty

    def apply(self, logits: Tensor, counts: TokenCounts | None) -> Tensor:
        assert counts is not None
        penalised = torch.where(logits > 0, logits / self.penalty, logits * self.penalty)
        return torch.where(counts.prompt | (counts.drawn > 0), penalised, logits)
