"""What a rule of sampling is, and what it is told of the text so far."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Annotated

import torch
from torch import Tensor

from lightning_gpt.models.registry import Registry
from lightning_gpt.options import Range

rules: Registry["SamplingRule"] = Registry("rule")
"""Every rule; those of :class:`~lightning_gpt.models.decoding.sampling.Sampling` have the names of its options."""

# far beyond every sensible value, and near enough to 0 and 1 that logits stay finite
PenaltyFactor = Annotated[float, Range(0.001, 1000)]
"""What a penalty divides or multiplies logits by."""
PenaltyTerm = Annotated[float, Range(-1000, 1000)]
"""What a penalty subtracts from logits."""


class TokenCounts:
    """Which tokens texts hold so far.

    Args:
        prompt: Whether each token is in the prompt, ``(rows, vocab_size)`` booleans.
        drawn: How many times each token has been drawn after the prompt, ``(rows, vocab_size)``.
    """

    def __init__(self, prompt: Tensor, drawn: Tensor) -> None:
        self.prompt, self.drawn = prompt, drawn

    @classmethod
    def of_prompts(cls, ids: Tensor, lengths: Tensor | None, vocab_size: int) -> "TokenCounts":
        """The counts of prompts ``ids`` ``(rows, time)``, of ``lengths`` tokens each, before any token is drawn."""
        marks = torch.ones_like(ids)
        if lengths is not None:
            marks = (torch.arange(ids.shape[1], device=ids.device) < lengths[:, None]).long()
        counts = torch.zeros(len(ids), vocab_size, dtype=torch.long, device=ids.device).scatter_add_(1, ids, marks)
        return cls(counts > 0, torch.zeros_like(counts))

    @classmethod
    def stacked(cls, parts: Sequence["TokenCounts"]) -> "TokenCounts":
        """The rows of all ``parts``."""
        return cls(torch.cat([part.prompt for part in parts]), torch.cat([part.drawn for part in parts]))

    def add(self, tokens: Tensor) -> None:
        """Count one more token a row, ``(rows,)``, as drawn."""
        self.drawn.scatter_add_(1, tokens[:, None], torch.ones_like(tokens)[:, None])


class SamplingRule(ABC):
    """Changes the logits of the next token. What a rule rules out gets −∞."""

    reads_text = False
    """Whether it needs to know the tokens of the text so far. Drafts of speculative decoding cannot give them."""

    @abstractmethod
    def apply(self, logits: Tensor, counts: TokenCounts | None) -> Tensor:
        """New logits ``(rows, vocab_size)`` in fp32; the given ones are left as they are.

        Args:
            logits: ``(rows, vocab_size)``, fp32.
            counts: The tokens of each row's text so far; None unless :attr:`reads_text`.
        """
