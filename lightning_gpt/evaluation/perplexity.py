"""Perplexity and bits per byte of texts."""

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from lightning_gpt.data.tokenizer import Tokenizer
from lightning_gpt.errors import CallError
from lightning_gpt.evaluation.windows import ScoredWindow, batches_of, window_nll, windows_of
from lightning_gpt.models import LanguageModel
from lightning_gpt.models.evaluating import evaluating
from lightning_gpt.perplexity import perplexity

Documents = Literal["apart", "joined"]


@dataclass(frozen=True)
class ReadingOptions:
    """How texts are read.

    Args:
        window: The most tokens that are read at once.
        stride: Tokens from the start of a window to that of the next.
        batch_size: Windows that are read together.
        documents: ``apart``: no window reads two documents. ``joined``: they are one text, with ``<|endoftext|>``
            between them, which is scored, too.
        first_token: Whether the first token of a text is scored, given the tokenizer's start or ``<|endoftext|>``. A
            tokenizer with a start of its own has it read in any case, and scores it never.
    """

    window: int
    stride: int
    batch_size: int = 8
    documents: Documents = "apart"
    first_token: bool = False


@dataclass
class TextScores:
    """What was read and scored.

    Args:
        documents: Number of texts.
        words: Words in them, separated by white space.
        bytes: Their bytes in UTF-8.
        tokens: Their tokens, without what was put before them.
        scored: How many of them were scored.
        nll: The sum of the scored tokens' negative log-likelihoods, in nats.
        weighted: The sum over windows of their mean times one less than the number of their new tokens.
        weights: The sum of these numbers less one.
    """

    documents: int = 0
    words: int = 0
    bytes: int = 0
    tokens: int = 0
    scored: int = 0
    nll: float = 0.0
    weighted: float = 0.0
    weights: int = 0

    @property
    def loss(self) -> float:
        """The mean negative log-likelihood of a scored token, in nats."""
        return self.nll / self.scored

    @property
    def perplexity(self) -> float:
        """``exp`` of the loss."""
        return perplexity(self.loss)

    @property
    def word_perplexity(self) -> float:
        """``exp`` of the loss times the tokens of a word."""
        return perplexity(self.loss * self.tokens / self.words) if self.words else math.nan

    @property
    def bits_per_byte(self) -> float:
        """The loss in bits times the tokens of a byte; NaN for texts without one."""
        return self.loss / math.log(2) * self.tokens / self.bytes if self.bytes else math.nan

    @property
    def window_mean_perplexity(self) -> float:
        """The perplexity by the recipe of transformers' documentation.

        Windows are averaged by their numbers of new tokens less one, as if the first of them were never scored. With
        windows that overlap it is, so this differs a little from the perplexity.
        """
        return perplexity(self.weighted / self.weights) if self.weights else math.nan

    def add(self, window: ScoredWindow, nll: float) -> None:
        """Count the scored tokens of a window."""
        self.scored += window.scored
        self.nll += nll
        self.weights += window.new - 1
        if window.scored:
            self.weighted += nll / window.scored * (window.new - 1)

    def as_dict(self) -> dict[str, Any]:
        """The numbers for a JSON object."""
        counts = {name: value for name, value in asdict(self).items() if not name.startswith("weight")}
        names = ("loss", "perplexity", "word_perplexity", "bits_per_byte", "window_mean_perplexity")
        return {**counts, **{name: getattr(self, name) for name in names}}


def score_texts(
    model: LanguageModel,
    tokenizer: Tokenizer,
    texts: Iterable[str],
    reading: ReadingOptions,
    device: torch.device,
    report: Callable[[TextScores], object] = lambda scores: None,
) -> TextScores:
    """How well a model predicts texts.

    Args:
        model: The model, on ``device``.
        tokenizer: Its tokenizer.
        texts: The documents; read one after another.
        reading: How.
        device: Where the model is.
        report: Called after each batch with what has been scored so far.

    Raises:
        CallError: The stride is longer than the window, the window than what the model can read, or the texts have no
            token to score.
    """
    require_readable(model, reading)
    scores = TextScores()

    def windows() -> Iterator[ScoredWindow]:
        for ids in _streams(tokenizer, texts, reading, scores):
            model.require_ids(ids[None, : reading.window])
            yield from (each for each in windows_of(ids, reading.window, reading.stride) if len(each.ids) > 1)

    with evaluating(model):
        for batch in batches_of(windows(), reading.batch_size):
            for window, nll in zip(batch, window_nll(model, batch, device), strict=True):
                scores.add(window, nll)
            report(scores)
    if not scores.scored:
        raise CallError(
            f"there is no token to score: {scores.documents:,} documents have {scores.tokens:,} tokens, and the first "
            f"of each has nothing before it (first_token true scores it)"
        )
    return scores


def require_readable(model: LanguageModel, reading: ReadingOptions) -> None:
    """Refuse windows that the model cannot read.

    Raises:
        CallError: They are too long, or leave gaps.
    """
    if reading.stride > reading.window:
        raise CallError(f"stride is {reading.stride} and window {reading.window}; a longer stride would skip tokens")
    limit = model.context_limit
    if limit is not None and reading.window > limit:
        raise CallError(f"window is {reading.window}; the model's learned positions end at block_size {limit}")


def _streams(
    tokenizer: Tokenizer, texts: Iterable[str], reading: ReadingOptions, scores: TextScores
) -> Iterator[Tensor]:
    """The tokens of each text to be cut into windows, ``(time,)``, counting what is read."""
    before = list(tokenizer.start) or ([tokenizer.end_of_text] if reading.first_token else [])
    joined: list[Tensor] = []
    for text in texts:
        ids = torch.from_numpy(tokenizer.encode(text).astype("int64"))
        scores.documents += 1
        scores.words += len(text.split())
        scores.bytes += len(text.encode("utf-8", "surrogatepass"))
        if reading.documents == "apart":
            scores.tokens += len(ids)
            yield torch.cat([torch.tensor(before, dtype=torch.long), ids])
        else:
            joined += [torch.tensor([tokenizer.end_of_text]), ids] if joined else [ids]
    if reading.documents == "joined":
        whole = torch.cat([*joined, torch.empty(0, dtype=torch.long)])
        scores.tokens += len(whole)
        yield torch.cat([torch.tensor(before, dtype=torch.long), whole])
