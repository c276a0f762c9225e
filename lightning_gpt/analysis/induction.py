"""Induction heads: what each head attends to in random tokens that are repeated.

A sequence of random tokens followed by itself can be predicted in its second half by copying only, and its tokens mean
nothing, so what a head attends to shows what it does. Olsson et al. 2022, "In-context Learning and Induction Heads"
(2209.11895), section "Model analysis table" and appendix: an induction head attends from a token to the one after the
token's earlier occurrence (prefix matching), helped by a head of an earlier layer that attends to the previous token.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_gpt.analysis.patterns import attention_patterns
from lightning_gpt.errors import CallError
from lightning_gpt.models import LanguageModel
from lightning_gpt.models.double import double
from lightning_gpt.models.evaluating import evaluating

PERIOD = 64
"""Longest sequence that is repeated unless another is asked for, in tokens."""


@dataclass(frozen=True)
class PatternScores:
    """Scores of each head on repeated tokens: ``(n_head,)`` per block, None without softmax attention.

    Args:
        induction: Mean attention from a token to the one after its earlier occurrence.
        previous_token: Mean attention to the previous token.
        duplicate_token: Mean attention from a token to its earlier occurrence.
    """

    induction: list[Tensor | None]
    previous_token: list[Tensor | None]
    duplicate_token: list[Tensor | None]

    @classmethod
    def of(cls, model: LanguageModel, ids: Tensor, period: int) -> "PatternScores":
        """The scores of ``model`` over ``ids`` ``(batch, time)``, whose last ``2 · period`` tokens are repeated."""
        patterns, start = attention_patterns(model, ids), ids.shape[1] - period

        def mean_lookback(back: int, begin: int) -> list[Tensor | None]:
            return [None if p is None else lookback_score(p, back, begin).mean(dim=0) for p in patterns]

        return cls(mean_lookback(period - 1, start), mean_lookback(1, 1), mean_lookback(period, start))


@dataclass(frozen=True)
class HeadScores(PatternScores):
    """The same on repeated random tokens, and whether the model makes use of the repetition.

    Args:
        first_loss: Mean loss in nats of the tokens when they occur first; nothing predicts them.
        repeat_loss: Mean loss in nats of their repetition, without its first token, which is not predictable either.
    """

    first_loss: float
    repeat_loss: float


def head_scores(
    model: LanguageModel, rows: int = 4, period: int | None = None, seed: int = 0, first: int | None = None
) -> HeadScores:
    """Score every head of ``model`` on ``rows`` sequences of random tokens, each repeated once.

    Args:
        model: The model.
        rows: Number of sequences, at least 1.
        period: Number of tokens that are repeated, at least 2; by default :data:`PERIOD`, or fewer if the model cannot
            read twice as many.
        seed: Seed of the random tokens.
        first: Id of a token to put before each sequence, such as the tokenizer's start of text; None for none. Models
            trained with one keep their attention sink there.

    Raises:
        CallError: If ``rows`` is below 1 or the period below 2, or the model cannot read ``2 · period`` tokens, and
            ``first``.
    """
    if rows < 1:
        raise CallError(f"rows is {rows}; it must be 1 or more")
    extra = 0 if first is None else 1
    period = longest_period(model, extra) if period is None else period
    if period < 2:
        raise CallError(
            f"the repeated sequence has {period} tokens; it must have at least 2, so that one can be copied"
        )
    ids = repeated_tokens(model.config.vocab_size, rows, period, seed, first).to(model.unembedding.device)
    scores, start = PatternScores.of(model, ids, period), period + extra
    with evaluating(model):
        nll = double(model.token_nll(ids[:, :-1], ids[:, 1:]))  # of the tokens after the first
    return HeadScores(
        **vars(scores), first_loss=float(nll[:, : start - 1].mean()), repeat_loss=float(nll[:, start:].mean())
    )


def longest_period(model: LanguageModel, extra: int = 0) -> int:
    """The period that :func:`head_scores` uses: :data:`PERIOD`, or half of what the model can read but ``extra``."""
    limits = [limit for limit in (model.context_limit, model.trace_limit) if limit is not None]
    return min([PERIOD, *((limit - extra) // 2 for limit in limits)])


def repeated_tokens(vocab_size: int, rows: int, period: int, seed: int = 0, first: int | None = None) -> Tensor:
    """``rows`` sequences of ``period`` uniformly random ids, each followed by itself: ``(rows, 2 · period)``.

    With ``first``, that id is put before each. The ids depend on the arguments only, not on torch's random state.
    """
    generator = torch.Generator().manual_seed(seed)
    once = torch.randint(vocab_size, (rows, period), generator=generator)
    start = [] if first is None else [torch.full((rows, 1), first)]
    return torch.cat([*start, once, once], dim=1)


def lookback_score(pattern: Tensor, back: int, start: int) -> Tensor:
    """Mean attention from each token at ``start`` or later to the one ``back`` tokens before it: ``(...)``.

    ``1/(t − s) Σ_{i≥s} A_{i, i−back}`` of a pattern ``(..., time, keys)``, tokens counted from 0. Where there are more
    keys than tokens, the last ``time`` keys are the tokens. Range: 0 to 1. With ``back`` 1 this is the previous-token
    score; with ``back = period − 1`` and ``start = period`` the induction (prefix-matching) score of 2209.11895.
    """
    time = pattern.shape[-2]
    return pattern[..., -time:].diagonal(offset=-back, dim1=-2, dim2=-1)[..., start - back :].mean(dim=-1)
