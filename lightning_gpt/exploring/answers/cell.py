"""How one cell of a softmax came about, and what it did: the numbers of the formula, in its order."""

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_gpt.analysis.attention import maps_of, readable_tokens
from lightning_gpt.analysis.attribution import head_terms
from lightning_gpt.analysis.head_matrices import matrices_of
from lightning_gpt.errors import CallError
from lightning_gpt.exploring.looking import TextPass
from lightning_gpt.exploring.packing import packed
from lightning_gpt.models.evaluating import evaluating

_TOKENS = 6
"""Tokens whose logits a cell raises most, and lowers most."""


def cell(look: TextPass, layer: int, head: int, row: int, column: int) -> bytes:
    """A cell of the softmax of a head: from ``q_i · k_j`` to what ``A_ij v_j`` does to the logits after ``row``."""
    look.require_head(layer, head)
    maps = maps_of(look.model, look.trace, look.tokens, layer)
    look.require_row(row)
    look.require_column(layer, column)
    scores, mask, pattern = (each[0, head] for each in (maps.scores, maps.mask, maps.pattern))
    mixer = look.model.block_views()[layer].mixer
    content: dict[str, Any] = {
        "layer": layer,
        "head": head,
        "row": row,
        "column": column,
        "names": [maps.tokens[row], maps.keys[column]],
        "score": float(scores[row, column]),
        "mask": bool(mask[row, column]),
        "weight": float(pattern[row, column]),
        "width": mixer.scale_width,
    }
    allowed = scores[row][mask[row]].astype(np.float64)
    largest = float(allowed.max())
    content |= {
        "largest": largest,
        "allowed": len(allowed),
        "raised": float(np.exp(float(scores[row, column]) - largest)),
        "sum": float(np.exp(allowed - largest).sum()),
    }
    # other attention than the softmax of its scores makes its weights in another way
    content["isSoftmax"] = not mask[row, column] or math.isclose(
        content["raised"] / content["sum"], content["weight"], rel_tol=1e-3, abs_tol=1e-6
    )
    arrays = {"scores": scores[row], "weights": pattern[row], "masks": mask[row]}
    found = matrices_of(look.model, look.trace, layer)
    q, k, v = (found.get(symbol) for symbol in "QKV")
    if (
        q is not None
        and k is not None
        and len(q) == maps.n_head
        and q.shape[-1] == k.shape[-1]
        and len(maps.keys) == k.shape[1]
    ):
        arrays["q"], arrays["k"] = q[head, row], k[head * len(k) // maps.n_head, column]
        content["product"] = float(arrays["q"].astype(np.float64) @ arrays["k"].astype(np.float64))
        content["scaled"] = content["product"] / math.sqrt(content["width"])
    if v is not None and len(maps.keys) == v.shape[1]:
        value = v[head * len(v) // maps.n_head, column]
        arrays["v"], arrays["brought"] = value, pattern[row, column] * value
        factors = mixer.value_output()
        if factors is not None and factors[1].shape[1] == value.shape[-1] and _adds_heads(look, layer):
            content["effect"] = _effect(look, layer, row, torch.from_numpy(arrays["brought"]), factors[1][head])
    return packed(content, arrays)


def _effect(look: TextPass, layer: int, row: int, brought: Tensor, w_o: Tensor) -> dict[str, Any]:
    """What ``A_ij v_j W_O`` adds to the logits after ``row`` directly, less what it adds to their mean."""
    model = look.model
    with evaluating(model):
        written = brought.to(w_o) @ w_o
        stream = look.last_stream[row]
        added = model.head.logit_share(model.read_out_share(written, stream), model.read_out(stream))
        added = (added - added.mean()).float()
    best, worst = added.topk(min(_TOKENS, len(added))), (-added).topk(min(_TOKENS, len(added)))
    named = [*best.indices.tolist(), *worst.indices.tolist()]
    names = readable_tokens(look.explored.tokenizer, named)
    half = len(best.indices)
    effect: dict[str, Any] = {
        "norm": float(written.norm()),
        "streamNorm": float(look.streams[layer][row].norm()),
        "raised": list(zip(names[:half], best.values.tolist(), strict=True)),
        "lowered": list(zip(names[half:], (-worst.values).tolist(), strict=True)),
        "next": None,
    }
    if row + 1 < len(look.ids):
        following = int(look.ids[row + 1])
        effect["next"] = [look.tokens[row + 1], float(added[following])]
    return effect


def _adds_heads(look: TextPass, layer: int) -> bool:
    """Whether the layer adds its heads' outputs to the stream as they are."""
    view, trace = look.model.block_views()[layer], look.trace
    after = look.model.narrowed(trace[view.half_name or view.stream_name])
    try:
        with evaluating(look.model):
            return bool(list(head_terms(view, trace[f"{view.mixer_name}.head_output"], look.streams[layer], after)))
    except CallError:
        return False
