"""Many prompts continued together, each by its own rules."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from lightning_gpt.data.tokenizer import Tokenizer
from lightning_gpt.models import LanguageModel
from lightning_gpt.models.decoding.early_exit import EarlyExit
from lightning_gpt.models.decoding.samplers import Sampler, draw_each, log_probabilities, require_drawn
from lightning_gpt.models.decoding.sampling import Decoder, Sampling, require_finite
from lightning_gpt.models.decoding.text import TextStream
from lightning_gpt.models.evaluating import evaluating


@dataclass(frozen=True)
class TextRequest:
    """A prompt and how it is to be continued.

    Args:
        ids: The prompt, ``(time,)``, on the model's device.
        max_new_tokens: Maximum number of tokens to sample.
        sampling: How each token is chosen.
        seed: Seed of the sampling.
        stop: The text ends before the first of these strings.
        logprobs: How many of the likeliest tokens are to be named with their log-probabilities, besides the drawn
            one's; None for no log-probabilities.
    """

    ids: Tensor
    max_new_tokens: int
    sampling: Sampling = field(default_factory=Sampling)
    seed: int = 0
    stop: tuple[str, ...] = ()
    logprobs: int | None = None


@dataclass(frozen=True)
class TokenLogProbability:
    """A drawn token with its log-probability in nats by the model, before any rule of sampling."""

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...]
    """The likeliest tokens and their log-probabilities."""


class Continuation:
    """A text that follows a prompt, token by token."""

    def __init__(self, tokenizer: Tokenizer, request: TextRequest) -> None:
        self.request = request
        self.text = ""
        self.tokens: list[int] = []
        """Every drawn token, also those of the stop string, or the one that ends a text."""
        self.logprobs: list[TokenLogProbability] = []
        self._stream = TextStream(tokenizer, request.stop)

    @property
    def finish(self) -> Literal["stop", "length"] | None:
        """Why no token follows; None if one does."""
        if self._stream.ended:
            return "stop"
        return "length" if len(self.tokens) >= self.request.max_new_tokens else None

    def add(self, token: int) -> str:
        """Take one more token; returns the text that it makes certain."""
        self.tokens.append(token)
        piece = self._stream.add(token)
        if self.finish is not None:
            piece += self._stream.close()
        self.text += piece
        return piece


def continue_texts(
    model: LanguageModel,
    tokenizer: Tokenizer,
    requests: Sequence[TextRequest],
    early_exit: EarlyExit | None = None,
) -> list[Continuation]:
    """Continue all prompts, read as one batch; texts that have ended leave it.

    Each text is what it would be alone, because its random numbers are its own; only the rounding of logits differs.

    Args:
        model: The model.
        tokenizer: The tokenizer that it was trained with.
        requests: The prompts, of any lengths; at least one.
        early_exit: A wrapper of ``model`` that runs tokens it is sure of through its first layers only.
    """
    texts = [Continuation(tokenizer, request) for request in requests]
    lengths = [len(request.ids) for request in requests]
    ids = pad_sequence([request.ids for request in requests], batch_first=True)
    padded = None if len(set(lengths)) == 1 else torch.tensor(lengths, device=ids.device)
    with evaluating(model):
        decoder = Decoder(early_exit or model, ids, padded, max(request.max_new_tokens for request in requests))
        vocab_size = decoder.logits.shape[-1]
        samplers = [Sampler(each.sampling, each.ids, vocab_size, each.seed) for each in requests]
        rows = list(range(len(texts)))  # the text of each row
        while True:
            places = [place for place, text in enumerate(rows) if texts[text].finish is None]
            if not places:
                return texts
            if len(places) < len(rows) and decoder.can_select:
                decoder.select(torch.tensor(places, device=ids.device))
                rows = [rows[place] for place in places]
                places = list(range(len(rows)))
            index = torch.tensor(places, device=ids.device)
            logits, live = decoder.logits[index], [texts[rows[place]] for place in places]
            require_finite(logits)
            tokens = draw_each(logits, [samplers[rows[place]] for place in places])
            require_drawn(tokens)
            _note(live, logits, tokens)
            for text, token in zip(live, tokens.tolist(), strict=True):
                text.add(token)
            if any(text.finish is None for text in live):
                # rows that have ended and cannot leave read what does not matter
                decoder.feed(torch.zeros(len(rows), dtype=torch.long, device=ids.device).scatter_(0, index, tokens))


def _note(texts: Sequence[Continuation], logits: Tensor, tokens: Tensor) -> None:
    """Note the log-probabilities of the texts that ask for them."""
    most = max((text.request.logprobs for text in texts if text.request.logprobs is not None), default=None)
    if most is None:
        return
    own, indices, values = (part.tolist() for part in log_probabilities(logits, tokens, most))
    for row, text in enumerate(texts):
        count = text.request.logprobs
        if count is not None:
            top = tuple(zip(indices[row][:count], values[row][:count], strict=True))
            text.logprobs.append(TokenLogProbability(int(tokens[row]), own[row], top))
