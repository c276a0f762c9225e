"""The logit lens: what the model would predict if it ended after each layer.

nostalgebraist 2020, "interpreting GPT: the logit lens": the residual stream after layer l goes through the final norm
and the unembedding as if l were the last layer, ``logits_l = norm_f(h_l) Uᵀ``. The last layer gives the model's own
logits.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lightning_gpt.models import LanguageModel
from lightning_gpt.models.evaluating import evaluating
from lightning_gpt.models.record import Trace

_ROWS_AT_ONCE = 256  # limits the logits in memory to 51 MB at GPT-2's vocabulary


def stream_names(model: LanguageModel) -> list[str]:
    """The ``n_layer + 1`` intermediates of the residual stream, from the embedding to the last layer.

    They are what passes between blocks, with all copies of the stream if there are several; the embedding is single.
    """
    return ["embedding", *(view.stream_name for view in model.block_views())]


def streams_of(model: LanguageModel, trace: Trace) -> list[Tensor]:
    """The recorded streams ``(batch, time, dim)``, from the embedding to the last layer, as the final norm reads them.

    Where a residual rule keeps several copies of the stream, each is the copies' sum, as if its layer were the last.
    """
    first, *others = stream_names(model)
    return [model.narrowed(model.widened(trace[first])), *(model.narrowed(trace[name]) for name in others)]


def lens_logits(model: LanguageModel, stream: Tensor) -> Tensor:
    """Logits ``(..., vocab_size)`` that the model would give if ``stream`` ``(..., dim)`` were its last layer's output.

    The one-head model has no final norm, so the stream goes straight into the unembedding.
    """
    return model.head(model.read_out(stream))  # type: ignore[no-any-return]


@dataclass(frozen=True)
class LogitLens:
    """The most likely next tokens at every layer and position of one text.

    Args:
        depths: Names of the layers: ``embedding``, ``layer 0``, …
        top: ``(depths, time, k)``, ids of the most likely next tokens, most likely first.
        probability: ``(depths, time, k)``, their probabilities.
        nll: ``(depths, time - 1)``, negative log-likelihood in nats of the actual next token.
    """

    depths: list[str]
    top: np.ndarray
    probability: np.ndarray
    nll: np.ndarray


def logit_lens(model: LanguageModel, ids: Tensor, k: int = 10) -> LogitLens:
    """The lens over ``ids`` ``(time,)``, with at most ``k`` tokens at each layer and position."""
    with evaluating(model), model.record(stream_names(model)) as trace:
        model.hidden(ids[None])
    return lens_of(model, trace, ids, k)


def lens_of(model: LanguageModel, trace: Trace, ids: Tensor, k: int = 10) -> LogitLens:
    """The lens in a pass over ``ids`` whose streams ``trace`` recorded; the pass may have been edited."""
    streams = torch.stack(streams_of(model, trace))[:, 0]
    with evaluating(model):
        found = lens_at(model, streams, ids, min(k, model.config.vocab_size))
    return LogitLens(["embedding", *(f"layer {n}" for n in range(len(streams) - 1))], *found)


def lens_at(model: LanguageModel, streams: Tensor, ids: Tensor, k: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The lens at some positions; to be called in evaluation mode, without gradients.

    All depths go through the unembedding in one product, which reads its matrix once, not once for each depth. Very
    many positions are cut into several products.

    Args:
        model: The model.
        streams: The output of each depth at these positions, ``(depths, time, dim)``.
        ids: Their tokens, and the one after them if there is one, ``(time,)`` or ``(time + 1,)``.
        k: Tokens at each position.

    Returns:
        Ids and probabilities of the ``k`` most likely next tokens, each ``(depths, time, k)``, and the negative
        log-likelihood in nats of the actual next token at each position that has one, ``(depths, time or time - 1)``.
    """
    depths, time = streams.shape[:2]
    rows = streams.flatten(0, 1)
    following = ids.new_zeros(time)  # where there is no next token, that of id 0, which is left out at the end
    following[: len(ids) - 1] = ids[1 : time + 1]
    following = following.repeat(depths)
    found = []
    for start in range(0, len(rows), _ROWS_AT_ONCE):
        logits = lens_logits(model, rows[start : start + _ROWS_AT_ONCE]).float()
        total = logits.logsumexp(dim=-1, keepdim=True)
        best = logits.topk(k, dim=-1)
        of_next = logits.gather(-1, following[start : start + len(logits), None])
        found.append((best.indices, (best.values - total).exp(), (total - of_next)[:, 0]))
    whole = [torch.cat(parts).cpu().numpy() for parts in zip(*found, strict=True)]
    indices, probability, nll = (each.reshape(depths, time, *each.shape[1:]) for each in whole)
    return indices, probability, nll[:, : len(ids) - 1]
