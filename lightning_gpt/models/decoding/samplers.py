"""Drawing the tokens of many texts at once, each by its own rules and from its own random numbers."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from lightning_gpt.errors import WorkError
from lightning_gpt.models.decoding.rules.rule import TokenCounts
from lightning_gpt.models.decoding.sampling import Decoder, Sampling, TokenReader, require_finite
from lightning_gpt.models.double import double


class Sampler:
    """Draws the tokens of one text.

    Random numbers come from a generator of its own on the CPU, one per token, so that the same seed gives the same text
    on every device and beside whatever other texts. What is left to chance is the rounding of the logits, which differs
    between devices and sizes of a batch.

    Args:
        sampling: The rules.
        prompt: The ids of the prompt, ``(time,)``, on the device of the logits.
        vocab_size: Number of tokens.
        seed: Seed of the random numbers, or their generator, on the CPU.
    """

    def __init__(self, sampling: Sampling, prompt: Tensor, vocab_size: int, seed: int | torch.Generator = 0) -> None:
        self.sampling = sampling
        self.counts = TokenCounts.of_prompts(prompt[None], None, vocab_size) if sampling.reads_text else None
        self._generator = seed if isinstance(seed, torch.Generator) else torch.Generator().manual_seed(seed)

    def chance(self) -> float:
        """The next random number, from 0 to below 1."""
        return torch.rand((), generator=self._generator, dtype=torch.float64).item()


def draw_each(logits: Tensor, samplers: Sequence[Sampler]) -> Tensor:
    """The next token of each text, ``(rows,)``, which its sampler takes note of.

    Texts with equal rules go through them together. The token is the first whose cumulative probability exceeds the
    text's random number. It is −1 where the largest logit after the rules is not finite: a rule of a user's own may
    leave no token, and large logits may overflow.

    Args:
        logits: ``(rows, vocab_size)``.
        samplers: One for each row.
    """
    alike: dict[Sampling, list[int]] = {}
    for row, sampler in enumerate(samplers):
        alike.setdefault(sampler.sampling, []).append(row)
    tokens = torch.empty(len(samplers), dtype=torch.long, device=logits.device)
    for sampling, rows in alike.items():
        index = torch.tensor(rows, device=logits.device)
        of_rows = [counts for row in rows if (counts := samplers[row].counts) is not None]
        counts = TokenCounts.stacked(of_rows) if of_rows else None
        if sampling.temperature == 0:
            changed = sampling.before_temperature(logits[index], counts)
            drawn = changed.argmax(dim=-1)
        else:
            changed = sampling.changed(logits[index], counts)
            chances = [samplers[row].chance() for row in rows]
            drawn = _first_above(changed, torch.tensor(chances, dtype=torch.float64, device="cpu"))
        tokens[index] = drawn.where(changed.amax(dim=-1).isfinite(), -1)
    for row, sampler in enumerate(samplers):
        if sampler.counts is not None:
            sampler.counts.add(tokens[row : row + 1].clamp(min=0))
    return tokens


def require_drawn(tokens: Tensor) -> None:
    """Refuse to go on with what :func:`draw_each` could not draw. Waits for the device.

    Raises:
        WorkError: One of ``tokens`` ``(rows,)`` is −1.
    """
    if bool((tokens < 0).any()):
        raise WorkError(
            "after the rules of sampling the largest logit is not finite, so no token can be chosen: change the rules"
        )


def sample_text(
    model: TokenReader, ids: Tensor, max_new_tokens: int, sampling: Sampling, seed: int | torch.Generator = 0
) -> Iterator[int]:
    """Yield up to ``max_new_tokens`` tokens that follow ``ids`` ``(time,)``, each as soon as it is drawn.

    ``seed`` is as in :class:`Sampler`; the caller may stop earlier.
    """
    decoder = Decoder(model, ids[None], None, max_new_tokens)
    sampler = Sampler(sampling, ids, decoder.logits.shape[-1], seed)
    for drawn in range(max_new_tokens):
        require_finite(decoder.logits)
        token = draw_each(decoder.logits, [sampler])
        require_drawn(token)
        yield int(token)
        if drawn + 1 < max_new_tokens:
            decoder.feed(token)


def _first_above(logits: Tensor, chances: Tensor) -> Tensor:
    """Draws by inversion of the cumulative distribution: ``(rows, vocab_size)`` and ``(rows,)`` to ``(rows,)``."""
    cumulative = double(logits.softmax(dim=-1)).cumsum(dim=-1)
    total = cumulative[:, -1]
    # below the total also after rounding, so that a token of probability 0 is never drawn
    target = torch.minimum(chances.to(total.device) * total, torch.nextafter(total, torch.zeros_like(total)))
    return torch.searchsorted(cumulative, target[:, None], right=True)[:, 0].to(logits.device)


def log_probabilities(logits: Tensor, tokens: Tensor, top: int) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probabilities in nats by the model's own distribution, before any rule.

    Args:
        logits: ``(rows, vocab_size)``.
        tokens: The drawn token of each row, ``(rows,)``.
        top: How many of the likeliest tokens to give besides.

    Returns:
        Those of the drawn tokens, ``(rows,)``; the likeliest tokens and theirs, ``(rows, top)`` each.
    """
    of_all = logits.float().log_softmax(dim=-1)
    values, indices = of_all.topk(min(top, of_all.shape[-1]), dim=-1)
    return of_all.gather(-1, tokens[:, None])[:, 0], indices, values
