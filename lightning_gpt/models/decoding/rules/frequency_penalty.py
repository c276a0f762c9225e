"""The penalty on drawn tokens that grows with each repetition."""

from torch import Tensor

from lightning_gpt.models.decoding.rules.rule import PenaltyTerm, SamplingRule, TokenCounts, rules


@rules.register("frequency_penalty")
class FrequencyPenalty(SamplingRule):
    """Subtracts ``penalty`` from a token's logit for each time that it has been drawn; the prompt does not count.

    As in OpenAI's API reference, which defines it.

    Args:
        penalty: Above 0 discourages repetition, below 0 encourages it.
    """

    reads_text = True

    def __init__(self, penalty: PenaltyTerm) -> None:
        self.penalty = penalty

    def apply(self, logits: Tensor, counts: TokenCounts | None) -> Tensor:
        assert counts is not None
        return logits - self.penalty * counts.drawn
