"""From logits to tokens: how the next token is chosen, and the loop that chooses many."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_gpt.errors import CallError


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How the next token is drawn from its logits.

    Args:
        temperature: Divides the logits; 0 takes the most likely token (greedy), 1 leaves the model's own odds.
        top_k: Draw among the ``k`` most likely tokens only (Fan et al. 2018, 1805.04833).
        top_p: Draw among the smallest set of tokens whose probabilities reach ``p`` (Holtzman et al. 2020,
            1904.09751, section 3.1); applied after ``temperature`` and ``top_k``.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < float("inf"):
            raise CallError(f"temperature is {self.temperature}; it must be 0 (greedy) or a positive number")
        if self.top_k is not None and self.top_k < 1:
            raise CallError(f"top_k is {self.top_k}; it must be at least 1")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise CallError(f"top_p is {self.top_p}; it must be above 0 and at most 1")

    def probabilities(self, logits: Tensor) -> Tensor:
        """The distribution that is drawn from: logits ``(batch, vocab_size)`` to rows that sum to 1."""
        logits = logits.float()
        if self.temperature == 0:
            return torch.zeros_like(logits).scatter_(-1, logits.argmax(dim=-1, keepdim=True), 1.0)
        # from the largest down and in double, so that no temperature is too small to divide by
        logits = ((logits - logits.amax(dim=-1, keepdim=True)).double() / self.temperature).float()
        if self.top_k is not None and self.top_k < logits.shape[-1]:
            # scatter the k winners rather than compare with the k-th: ties cannot let more than k through
            values, indices = logits.topk(self.top_k, dim=-1)
            logits = torch.full_like(logits, -torch.inf).scatter_(-1, indices, values)
        probabilities = logits.softmax(dim=-1)
        if self.top_p is not None and self.top_p < 1:
            ordered, indices = probabilities.sort(dim=-1, descending=True)
            reached_before = ordered.cumsum(dim=-1) - ordered >= self.top_p
            ordered = ordered.masked_fill(reached_before, 0.0)
            ordered[..., 0] = ordered[..., 0].clamp(min=torch.finfo(ordered.dtype).tiny)
            probabilities = torch.zeros_like(probabilities).scatter_(-1, indices, ordered)
            probabilities /= probabilities.sum(dim=-1, keepdim=True)
        return probabilities

    def draw(self, logits: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """One token id per row of ``logits`` ``(batch, vocab_size)``: ``(batch,)``."""
        if self.temperature == 0:
            return logits.argmax(dim=-1)
        return torch.multinomial(self.probabilities(logits), 1, generator=generator).squeeze(-1)


def sample(
    next_logits: Callable[[Tensor], Tensor],
    ids: Tensor,
    max_new_tokens: int,
    sampling: Sampling,
    generator: torch.Generator | None = None,
) -> Iterator[Tensor]:
    """Yield up to ``max_new_tokens`` new tokens, each ``(batch,)``, as soon as each is drawn.

    Args:
        next_logits: Gives ``(batch, vocab_size)`` logits for the token after ids ``(batch, time)``.
        ids: The prompts, ``(batch, time)`` with ``time >= 1``.
        max_new_tokens: How many tokens to draw at the most; the caller may stop earlier.
        sampling: How each is drawn.
        generator: Source of randomness; torch's global one when omitted.
    """
    if ids.ndim != 2 or ids.shape[1] < 1:
        raise CallError(
            f"the prompt ids have shape {tuple(ids.shape)}; (batch, time) with at least one token is needed"
        )
    if max_new_tokens < 0:
        raise CallError(f"max_new_tokens is {max_new_tokens}; it must be at least 0")
    for _ in range(max_new_tokens):
        token = sampling.draw(next_logits(ids), generator)
        yield token
        ids = torch.cat([ids, token[:, None]], dim=1)
