"""From logits to tokens: choosing the next token, and the generation loop."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Annotated, Any, Protocol

import torch
from torch import Tensor

from lightning_gpt.errors import CallError, WorkError
from lightning_gpt.models.decoding.captured import CapturedReading, Reads, can_be_captured
from lightning_gpt.models.decoding.rules.rule import PenaltyFactor, PenaltyTerm, SamplingRule, TokenCounts, rules
from lightning_gpt.models.decoding.rules.temperature import Temperature
from lightning_gpt.models.kv_cache import Cache
from lightning_gpt.options import (
    NotNegative,
    Range,
    Share,
    ShareAboveZero,
    VocabSize,
    check_option,
    check_options,
)

NewTokens = Annotated[int, Range(0, 2**20)]
"""Tokens to generate after a prompt. The cache has room for all of them from the start."""


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How the next token is drawn from its logits: rules in the order of these options, each left out if None.

    Args:
        repetition_penalty: Divides the logits of tokens that the prompt or the new text holds, if they are positive,
            and multiplies them if not.
        frequency_penalty: Subtracted from a token's logit for each time that it has been drawn.
        presence_penalty: Subtracted from the logit of each token that has been drawn.
        rules: Further rules, by their names and options, such as those of a module of your own.
        temperature: Divides the logits; 0 takes the most likely token (greedy), 1 leaves the model's distribution
            unchanged.
        top_k: Draw only from the ``k`` most likely tokens.
        top_p: Draw only from the smallest set of tokens whose total probability reaches ``p``.
        min_p: Draw only from tokens that are at least ``p`` times as likely as the most likely one.
    """

    repetition_penalty: PenaltyFactor | None = None
    frequency_penalty: PenaltyTerm | None = None
    presence_penalty: PenaltyTerm | None = None
    rules: tuple[str | dict[str, Any], ...] = ()
    temperature: NotNegative = 1.0
    top_k: VocabSize | None = None
    top_p: ShareAboveZero | None = None
    min_p: Share | None = None

    def __post_init__(self) -> None:
        check_options(Sampling.__init__, vars(self))
        object.__setattr__(self, "rules", tuple(rules.require(given, "rules") for given in self.rules))
        _ = self.chain  # a rule that cannot be made is refused here

    @cached_property
    def chain(self) -> tuple[SamplingRule, ...]:
        """The rules in the order in which they are applied."""
        made: list[SamplingRule] = []
        for option in fields(self):
            value = getattr(self, option.name)
            if option.name == "rules":
                made += [rules.make(given) for given in value]
            elif value is not None:
                made.append(rules.get(option.name)(value))  # type: ignore[call-arg]
            if option.name == "temperature" and value == 0:
                break  # one token is left
        return tuple(made)

    @property
    def reads_text(self) -> bool:
        """Whether a rule needs to know the tokens of the text so far."""
        return any(rule.reads_text for rule in self.chain)

    def changed(self, logits: Tensor, counts: TokenCounts | None = None) -> Tensor:
        """The logits ``(rows, vocab_size)`` after all rules, in fp32."""
        return _through(self.chain, logits, counts)

    def before_temperature(self, logits: Tensor, counts: TokenCounts | None = None) -> Tensor:
        """The logits ``(rows, vocab_size)`` whose largest is the token that temperature 0 takes, in fp32."""
        return _through([rule for rule in self.chain if not isinstance(rule, Temperature)], logits, counts)

    def probabilities(self, logits: Tensor, counts: TokenCounts | None = None) -> Tensor:
        """The sampling distribution: logits ``(rows, vocab_size)`` to rows that sum to 1."""
        return self.changed(logits, counts).softmax(dim=-1)

    def draw(
        self, logits: Tensor, generator: torch.Generator | None = None, counts: TokenCounts | None = None
    ) -> Tensor:
        """One token id per row of ``logits`` ``(rows, vocab_size)``: ``(rows,)``."""
        if self.temperature == 0:
            return self.before_temperature(logits, counts).argmax(dim=-1)
        return torch.multinomial(self.probabilities(logits, counts), 1, generator=generator).squeeze(-1)


def require_finite(logits: Tensor) -> None:
    """Refuse to choose tokens by logits that are no numbers. Waits for the device.

    Raises:
        WorkError: The largest of a text's logits is infinite or NaN.
    """
    if not bool(logits.amax(dim=-1).isfinite().all()):
        raise WorkError("the model's logits are not finite, so no token can be chosen: has its training diverged?")


def _through(chain: Iterable[SamplingRule], logits: Tensor, counts: TokenCounts | None) -> Tensor:
    logits = logits.float()
    for rule in chain:
        logits = rule.apply(logits, counts)
    return logits


class TokenReader(Reads, Protocol):
    """What generation needs of a language model."""

    @property
    def context_limit(self) -> int | None:
        """The longest sequence the model can read, in tokens; None if unlimited."""

    def new_cache(self, capacity: int) -> Cache:
        """An empty cache."""


class Decoder:
    """Reads prompts, then one token per row at a time; holds the logits of the next token.

    As long as the text fits the model's context, the cache holds what was read. Beyond that the context slides, and
    every token is predicted by rereading the last ids, because cached keys and values depend on learned positions.

    Args:
        model: Provides the logits; must be in evaluation mode and run without gradients.
        ids: The prompts ``(batch, time)``.
        lengths: Number of prompt ids in each row, ``(batch,)``; all if None.
        max_new_tokens: Upper bound on the number of tokens read after the prompts.
        same_rows: Whether the rows stay the same to the end, so that reading may be captured as a graph;
            :meth:`select` then may be impossible.
    """

    def __init__(
        self,
        model: TokenReader,
        ids: Tensor,
        lengths: Tensor | None,
        max_new_tokens: int,
        same_rows: bool = True,
    ) -> None:
        if ids.ndim != 2 or ids.shape[1] < 1:
            raise CallError(
                f"the prompt ids have shape {tuple(ids.shape)}; it must be (batch, time) with at least one token"
            )
        check_option("max_new_tokens", max_new_tokens, NewTokens)
        if lengths is not None and not (
            lengths.shape == ids.shape[:1] and lengths.min() >= 1 and lengths.max() <= ids.shape[1]
        ):
            raise CallError(f"lengths are {lengths.tolist()}; each of the {len(ids)} must be from 1 to {ids.shape[1]}")
        self.model = model
        self.limit = model.context_limit
        self.ids = ids
        self.lengths = lengths
        self.cache: Cache | None = None
        self._captured: CapturedReading | None = None
        if self._fits(ids.shape[1]):
            whole = ids.shape[1] + max_new_tokens
            self.cache = model.new_cache(whole if self.limit is None else min(whole, self.limit))
            self.logits = model.next_logits(ids, lengths, self.cache)
            if same_rows and can_be_captured(model, self.cache, max_new_tokens, ids.device):
                self._captured = CapturedReading(model, self.cache, len(ids), ids.device)
        else:
            self.logits = self._slide()

    def _fits(self, time: int) -> bool:
        return self.limit is None or time <= self.limit

    def feed(self, tokens: Tensor) -> None:
        """Read one more token per row, ``(batch,)``."""
        if self.lengths is None:
            self.ids = torch.cat([self.ids, tokens[:, None]], dim=1)
        else:
            self.ids = torch.cat([self.ids, tokens[:, None]], dim=1).scatter_(1, self.lengths[:, None], tokens[:, None])
            self.lengths = self.lengths + 1
        longest = self.ids.shape[1]
        if self.cache is not None and self._fits(longest) and self._captured is not None:
            self.logits = self._captured.next_logits(tokens)
        elif self.cache is not None and self._fits(longest):
            self.logits = self.model.next_logits(tokens[:, None], cache=self.cache)
        else:
            self.cache = self._captured = None
            self.logits = self._slide()

    @property
    def can_select(self) -> bool:
        """Whether :meth:`select` works: not if reading is a graph, or if the cache cannot."""
        return self._captured is None and (self.cache is None or self.cache.can_select)

    def select(self, rows: Tensor) -> None:
        """Go on with these rows, ``(new,)`` indices, in this order; a row may be taken several times or not at all."""
        self.ids, self.logits = self.ids[rows], self.logits[rows]
        if self.lengths is not None:
            self.lengths = self.lengths[rows]
        if self.cache is not None:
            self.cache.select(rows)

    def _slide(self) -> Tensor:
        """Logits computed from only the last ids of each row."""
        if self.lengths is None:
            return self.model.next_logits(self.ids)
        limit = self.limit or self.ids.shape[1]
        start = (self.lengths - limit).clamp(min=0)
        place = start[:, None] + torch.arange(min(limit, self.ids.shape[1]), device=self.ids.device)
        window = self.ids.gather(1, place.clamp(max=self.ids.shape[1] - 1))
        return self.model.next_logits(window, self.lengths - start)


def sample(
    decoder: Decoder, max_new_tokens: int, sampling: Sampling, generator: torch.Generator | None = None
) -> Iterator[Tensor]:
    """Yield up to ``max_new_tokens`` new tokens, each ``(batch,)``, as soon as they are drawn.

    Args:
        decoder: A decoder that has read the prompts.
        max_new_tokens: Maximum number of tokens to draw; the caller may stop earlier.
        sampling: How each token is drawn.
        generator: Source of randomness; torch's global one if omitted.
    """
    counts = None
    if sampling.reads_text:
        counts = TokenCounts.of_prompts(decoder.ids, decoder.lengths, decoder.logits.shape[-1])
    for drawn in range(max_new_tokens):
        token = sampling.draw(decoder.logits, generator, counts)
        yield token
        if counts is not None:
            counts.add(token)
        if drawn + 1 < max_new_tokens:
            decoder.feed(token)


def continued(
    model: TokenReader,
    ids: Tensor,
    max_new_tokens: int,
    sampling: Sampling,
    lengths: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Each row of ``ids`` ``(batch, time)`` continued: ``(batch, time + max_new_tokens)``.

    With ``lengths`` ``(batch,)``, a row's new tokens follow its prompt directly, and its padding comes after them.
    """
    new = list(sample(Decoder(model, ids, lengths, max_new_tokens), max_new_tokens, sampling, generator))
    if lengths is None or not new:
        return torch.cat([ids, *(token[:, None] for token in new)], dim=1)
    joined = torch.cat([ids, ids[:, -1:].expand(-1, len(new))], dim=1)
    place = lengths[:, None] + torch.arange(len(new), device=ids.device)
    return joined.scatter_(1, place, torch.stack(new, dim=1))
