"""Cutting texts longer than the context into windows, and scoring many windows at once."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from lightning_gpt.models import LanguageModel
from lightning_gpt.models.double import double

_BUFFERED = 16
"""Batches whose windows are sorted by length together, so that few places are padding."""


@dataclass(frozen=True)
class ScoredWindow:
    """A stretch of a text that is read in one pass.

    Args:
        ids: Its tokens, ``(time,)``.
        scored: How many of the last ones are scored; all but the first at most, as that one has nothing before it.
        new: How many of them no earlier window has read.
    """

    ids: Tensor
    scored: int
    new: int


def windows_of(ids: Tensor, window: int, stride: int) -> Iterator[ScoredWindow]:
    """Windows of at most ``window`` tokens, each ``stride`` tokens after the one before, to the end of a text.

    A window scores the tokens that the one before has not read. With a stride of 1 every token is predicted from the
    full context; with one of ``window`` tokens, contexts begin anew and the first token of each is not scored.

    Args:
        ids: The text, ``(time,)``.
        window: The most tokens that are read at once.
        stride: At most ``window``.
    """
    read = 0
    for begin in range(0, len(ids), stride):
        end = min(begin + window, len(ids))
        yield ScoredWindow(ids[begin:end], end - max(read, begin + 1), end - read)
        read = end
        if end == len(ids):
            return


def batches_of(windows: Iterable[ScoredWindow], batch_size: int) -> Iterator[list[ScoredWindow]]:
    """The windows in batches of similar lengths."""
    windows = iter(windows)
    while buffered := list(islice(windows, batch_size * _BUFFERED)):
        buffered.sort(key=lambda each: len(each.ids), reverse=True)
        yield from (buffered[start : start + batch_size] for start in range(0, len(buffered), batch_size))


def window_nll(model: LanguageModel, windows: Sequence[ScoredWindow], device: torch.device) -> list[float]:
    """The negative log-likelihood in nats of each window's scored tokens, summed in float64.

    The output head computes no more than these tokens.
    """
    hidden, targets, counts = scored_hidden(model, windows, device)
    nll = double(model.head.token_nll(hidden, targets))
    return [float(part.sum()) for part in torch.split(nll, counts)]


def scored_hidden(
    model: LanguageModel, windows: Sequence[ScoredWindow], device: torch.device
) -> tuple[Tensor, Tensor, list[int]]:
    """Hidden states before the scored tokens of all windows, one after another, from one pass.

    Returns:
        The states ``(tokens, dim)``, the tokens ``(tokens,)``, and how many of them each window has.
    """
    inputs = pad_sequence([each.ids[:-1] for each in windows], batch_first=True).to(device)
    states = model.hidden(inputs)  # causal: padding at the end changes nothing before it
    rows = [states[row, len(each.ids) - 1 - each.scored : len(each.ids) - 1] for row, each in enumerate(windows)]
    targets = torch.cat([each.ids[len(each.ids) - each.scored :] for each in windows]).to(device)
    return torch.cat(rows), targets, [each.scored for each in windows]
