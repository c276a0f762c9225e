"""Speculative decoding: a small model guesses several tokens, and the large model checks them in one pass.

Leviathan et al. 2023 (2211.17192), algorithm 1. The output distribution is exactly the large model's, whatever the
small model guesses; only the number of the large model's passes changes.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from lightning_gpt.errors import CallError
from lightning_gpt.models.base import LanguageModel
from lightning_gpt.models.decoding.sampling import Decoder, Sampling, require_finite, sample
from lightning_gpt.models.kv_cache import LOOKAHEAD, Cache
from lightning_gpt.options import Range, check_option

Guesses = Annotated[int, Range(1, LOOKAHEAD - 1)]
"""Tokens that a draft guesses at a time; the cache can take back that many."""


@dataclass
class SpeculationCount:
    """Statistics of the guesses."""

    guessed: int = 0
    accepted: int = 0
    passes: int = 0
    """Number of passes of the large model."""


class _Reading:
    """One model's cached reading of the text so far; its last few tokens can be removed."""

    def __init__(self, model: LanguageModel, capacity: int) -> None:
        self.model = model
        self.cache: Cache = model.new_cache(capacity)

    def logits(self, ids: Tensor) -> Tensor:
        """Logits ``(new, vocab_size)`` after each of ``ids`` ``(1, time)`` that has not been read yet."""
        new = ids[:, self.cache.length :]
        return self.model.head.few(self.model.hidden(new, cache=self.cache)[0])


def sample_speculatively(
    model: LanguageModel,
    draft: LanguageModel,
    ids: Tensor,
    max_new_tokens: int,
    sampling: Sampling,
    generator: torch.Generator | None = None,
    n_guess: int = 4,
    count: SpeculationCount | None = None,
) -> Iterator[Tensor]:
    """Yield up to ``max_new_tokens`` tokens ``(1,)`` after the prompt ``ids`` ``(1, time)``.

    Past the end of either model's learned positions, the large model continues alone.

    Args:
        model: The large model, which defines the distribution; must be in evaluation mode and run without gradients.
        draft: The model that guesses; it must have the same vocabulary.
        ids: The prompt.
        max_new_tokens: Maximum number of tokens to draw.
        sampling: How both models draw.
        generator: Source of randomness; torch's global one if omitted.
        n_guess: Number of tokens guessed at a time.
        count: Receives statistics of guessed and accepted tokens.

    Raises:
        CallError: If the two models do not match, or a model's state cannot remove tokens.
    """
    count = count or SpeculationCount()
    if len(ids) != 1:
        raise CallError(f"speculative decoding continues one prompt at a time, not {len(ids)}")
    if model.config.vocab_size != draft.config.vocab_size:
        raise CallError(
            f"the draft's vocabulary has {draft.config.vocab_size} tokens and the model's {model.config.vocab_size}; "
            f"they must be the same"
        )
    check_option("n_guess", n_guess, Guesses)
    if sampling.reads_text:
        raise CallError(
            "speculative decoding draws several tokens at once, so rules that depend on the text so far, such as "
            "penalties, cannot be combined with it; use no draft"
        )
    limits = [limit for limit in (model.context_limit, draft.context_limit) if limit is not None]
    end = min([ids.shape[1] + max_new_tokens, *limits])
    capacity = end + n_guess + 1
    large, small = _Reading(model, capacity), _Reading(draft, capacity)
    if not (large.cache.can_truncate and small.cache.can_truncate):
        raise CallError(
            "speculative decoding removes rejected tokens, which is impossible with linear attention "
            "or memory tokens; use no draft"
        )
    left = max_new_tokens
    while left and ids.shape[1] + n_guess < end:
        guesses, guessed_by = _guess(small, ids, n_guess, sampling, generator)
        logits = large.logits(torch.cat([ids, guesses], dim=1))[-n_guess - 1 :]
        require_finite(logits)
        wanted = sampling.probabilities(logits)  # (n + 1, V)
        tokens = _accept(guesses[0], guessed_by, wanted, generator)
        count.guessed += n_guess
        count.accepted += len(tokens) - 1
        count.passes += 1
        for token in tokens[:left]:
            yield token[None]
        left -= min(left, len(tokens))
        ids = torch.cat([ids, tokens[None]], dim=1)
        for reading in (large, small):
            reading.cache.truncate(min(reading.cache.length, ids.shape[1] - 1))
    if left:
        yield from sample(Decoder(model, ids, None, left), left, sampling, generator)


def _guess(
    small: _Reading, ids: Tensor, n_guess: int, sampling: Sampling, generator: torch.Generator | None
) -> tuple[Tensor, Tensor]:
    """Guesses ``(1, n_guess)``, and the distributions ``(n_guess, vocab_size)`` they were drawn from."""
    distributions, start = [], ids.shape[1]
    for _ in range(n_guess):
        logits = small.logits(ids)[-1:]
        require_finite(logits)
        probabilities = sampling.probabilities(logits)
        distributions.append(probabilities)
        ids = torch.cat([ids, torch.multinomial(probabilities, 1, generator=generator)], dim=1)
    return ids[:, start:], torch.cat(distributions)


def _accept(guesses: Tensor, guessed_by: Tensor, wanted: Tensor, generator: torch.Generator | None) -> Tensor:
    """The accepted guesses plus one further token, ``(accepted + 1,)``.

    A guess x is accepted with probability ``min(1, p(x) / q(x))``; the first rejected guess is replaced by a draw from
    ``max(0, p − q)``, normalised to sum to 1.
    """
    chances = torch.rand(len(guesses), generator=generator, device=guesses.device)
    place = torch.arange(len(guesses), device=guesses.device)
    stands = chances * guessed_by[place, guesses] < wanted[place, guesses]
    n_stand = int(stands.long().cumprod(dim=0).sum())
    rest = wanted[n_stand]
    if n_stand < len(guesses):
        rest = (rest - guessed_by[n_stand]).clamp(min=0)
    return torch.cat([guesses[:n_stand], torch.multinomial(rest, 1, generator=generator)])
