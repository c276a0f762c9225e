"""Beam search: the likeliest continuations rather than drawn ones."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from lightning_gpt.errors import CallError
from lightning_gpt.models.decoding.sampling import Decoder, TokenReader, require_finite
from lightning_gpt.options import Range, check_option

Beams = Annotated[int, Range(1, 1024)]
"""Continuations that are followed at the same time."""
LengthPenalty = Annotated[float, Range(-10, 10)]


@dataclass(frozen=True)
class Beam:
    """A continuation, and the sum of its log-probabilities over its length to the power of the length penalty."""

    tokens: tuple[int, ...]
    """With the token that ends it, if it has ended."""
    score: float


def beam_search(
    model: TokenReader,
    ids: Tensor,
    max_new_tokens: int,
    beams: Beams,
    length_penalty: LengthPenalty = 1.0,
    ends: Sequence[int] = (),
) -> list[Beam]:
    """The best continuations found of ``ids`` ``(1, time)``, best first; at most ``beams``.

    Each step extends every beam by every token and keeps the best that have not ended; a continuation that ends among
    the best ``beams`` is set aside. The search stops when as many are set aside and no beam as it stands scores higher
    than the worst of them: the rule of ``transformers`` for ``early_stopping=False``.

    Args:
        model: In evaluation mode, without gradients.
        ids: The prompt.
        max_new_tokens: The longest continuation, in tokens.
        beams: How many continuations are followed.
        length_penalty: The power of the length by which log-probabilities are divided; above 0 prefers longer texts
            than 0 does.
        ends: The tokens that end a text.

    Raises:
        CallError: If there are several prompts, or the model's cache cannot be rearranged.
    """
    check_option("beams", beams, Beams)
    check_option("length_penalty", length_penalty, LengthPenalty)
    if len(ids) != 1:
        raise CallError(f"beam search continues one prompt at a time, not {len(ids)}")
    decoder = Decoder(model, ids, None, max_new_tokens, same_rows=False)
    if not decoder.can_select:
        raise CallError("beam search rearranges what the model keeps of a text, which is impossible with memory")
    scores, texts = torch.zeros(1, device=ids.device), ids.new_zeros(1, 0)
    ended: list[Beam] = []
    closing = torch.tensor(ends, dtype=torch.long, device=ids.device)
    # so many that as many go on as there are beams: of a beam's best tokens, each of ``ends`` may be one
    most = beams * (1 + max(1, len(ends)))
    for length in range(1, max_new_tokens + 1):
        require_finite(decoder.logits)
        totals = scores[:, None] + decoder.logits.float().log_softmax(dim=-1)  # (rows, vocab_size)
        best, flat = totals.flatten().topk(min(most, totals.numel()))
        rows, tokens = flat // totals.shape[1], flat % totals.shape[1]
        is_end = torch.isin(tokens, closing)
        over = length**length_penalty
        last = length == max_new_tokens
        for place in range(min(beams, len(tokens))):
            if last or is_end[place]:
                text = (*texts[rows[place]].tolist(), int(tokens[place]))
                ended.append(Beam(text, float(best[place]) / over))
        ended = sorted(ended, key=lambda beam: -beam.score)[:beams]
        going = torch.nonzero(~is_end)[:beams, 0]
        scores, rows, tokens = best[going], rows[going], tokens[going]
        if last or not len(going) or (len(ended) == beams and float(scores[0]) / over <= ended[-1].score):
            break
        texts = torch.cat([texts[rows], tokens[:, None]], dim=1)
        decoder.select(rows)
        decoder.feed(tokens)
    return ended
