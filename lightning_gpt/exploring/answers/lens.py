"""The logit lens at some positions, and what comes next after one."""

from typing import Any

import numpy as np
import torch

from lightning_gpt.analysis.attention import readable_tokens
from lightning_gpt.analysis.logit_lens import lens_at
from lightning_gpt.analysis.page import names_of
from lightning_gpt.exploring.looking import TextPass
from lightning_gpt.exploring.packing import packed
from lightning_gpt.models.decoding.sampling import Sampling
from lightning_gpt.models.double import double
from lightning_gpt.models.evaluating import evaluating

_LIKELIEST = 10
_BARS = 24
"""Tokens of the distribution that is cut."""


def lens(look: TextPass, first: int, count: int) -> bytes:
    """The most likely tokens after each layer at ``count`` positions from ``first`` on."""
    last = min(look.require_row(first) + count, len(look.ids))
    k = min(_LIKELIEST, look.model.config.vocab_size)
    with evaluating(look.model):
        top, probability, nll = lens_at(look.model, look.streams[:, first:last], look.ids[first : last + 1], k)
    content = {
        "depths": ["embedding", *(f"layer {layer}" for layer in range(len(top) - 1))],
        "first": first,
        "count": last - first,
        "k": k,
        "loss": nll.mean(axis=1).tolist() if nll.shape[1] else [None] * len(top),
        "vocabulary": names_of(top, lambda ids: readable_tokens(look.explored.tokenizer, ids)),
    }
    return packed(content, {"top": top.astype(np.int32), "probability": probability, "nll": nll})


def next_tokens(look: TextPass, against: TextPass | None, row: int, sampling: Sampling, seed: int | None) -> bytes:
    """The distribution after ``row``, before and after the rules of ``sampling``, and a token drawn from it."""
    logits = look.logits(look.require_row(row))
    before = logits.softmax(-1)
    after = sampling.probabilities(logits[None])[0]
    best = before.topk(min(_BARS, len(before)))
    ids, kept = best.indices, after > 0
    content: dict[str, Any] = {
        "row": row,
        "ids": ids.tolist(),
        "names": readable_tokens(look.explored.tokenizer, ids.tolist()),
        "probability": best.values.tolist(),
        "after": after[ids].tolist(),
        "kept": int(kept.sum()),
        "keptMass": float(double(before[kept]).sum()),
        "entropy": float(torch.special.entr(double(before)).sum()),
        "before": None,
        "drawn": None,
    }
    if against is not None:
        content["before"] = against.logits(against.require_row(row)).softmax(-1)[ids].tolist()
    if seed is not None:
        generator = torch.Generator(logits.device).manual_seed(seed)
        drawn = int(sampling.draw(logits[None], generator)[0])
        name = readable_tokens(look.explored.tokenizer, [drawn])[0]
        content["drawn"] = {"id": drawn, "name": name, "probability": float(after[drawn])}
    return packed(content, {})
