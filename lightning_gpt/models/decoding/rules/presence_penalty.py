"""The penalty on tokens that have been drawn at all."""

from torch import Tensor

from lightning_gpt.models.decoding.rules.rule import PenaltyTerm, SamplingRule, TokenCounts, rules


@rules.register("presence_penalty")
class PresencePenalty(SamplingRule):
    """Subtracts ``penalty`` from the logit of each token that has been drawn; the prompt does not count.

    As in OpenAI's API reference, which defines it.

    Args:
        penalty: Above 0 discourages repetition, below 0 encourages it.
    """

    reads_text = True

    def __init__(self, penalty: PenaltyTerm) -> None:
        self.penalty = penalty

    def apply(self, logits: Tensor, counts: TokenCounts | None) -> Tensor:
        assert counts is not None
        return logits - self.penalty * (counts.drawn > 0)
