"""What happens to the stream with depth, one token's way through it, and what layers and heads are worth."""

from typing import Any

import torch

from lightning_gpt.analysis.attention import readable_tokens
from lightning_gpt.analysis.attribution import attribution_of
from lightning_gpt.analysis.interventions import Part, ablated_loss, text_loss
from lightning_gpt.analysis.layer_values import layer_value
from lightning_gpt.analysis.similarity import effective_rank, rank_residual, token_cosine
from lightning_gpt.errors import CallError
from lightning_gpt.exploring.looking import TextPass
from lightning_gpt.exploring.packing import packed


def depth(look: TextPass) -> bytes:
    """By layer: how alike the tokens are, how many directions they fill, and how long they are."""
    streams = look.streams.float()
    measures: dict[str, Any] = {
        "norm": streams.norm(dim=-1).mean(dim=-1).tolist(),
        "rank": effective_rank(streams).tolist(),
        "residual": rank_residual(streams).tolist(),
        "cosine": token_cosine(streams).tolist() if streams.shape[1] > 1 else None,
    }
    return packed({"measures": measures, "most": min(streams.shape[1:])}, {})


def way(look: TextPass, row: int) -> bytes:
    """A token's way through the stream: its length after each half, and what each part adds to a logit directly.

    The logit is that of the token that comes next, or of the most likely one at the end of the text.
    """
    look.require_row(row)
    model = look.model
    is_last = row + 1 == len(look.ids)
    target = int(look.logits(row).argmax()) if is_last else int(look.ids[row + 1])
    targets = torch.full_like(look.ids, target)[None]
    try:
        found = attribution_of(model, look.trace, targets, by_head=True)
    except CallError:  # heads whose outputs are not added as they are
        found = attribution_of(model, look.trace, targets)
    points = [("embedding", look.streams[0])]
    for view in model.block_views():
        if view.half_name is not None:
            points.append((f"{view.layer}.attention", model.narrowed(look.trace[view.half_name])[0]))
        name = f"{view.layer}.ffn" if view.half_name is not None else f"{view.layer}.attention"
        points.append((name, model.narrowed(look.trace[view.stream_name])[0]))
    stream = [tensor[row].float() for _, tensor in points]
    steps = [
        {
            "name": name,
            "norm": float(here.norm()),
            "added": float((here - before).norm()) if number else float(here.norm()),
            "cosine": float(torch.cosine_similarity(here, before, dim=0)) if number else None,
        }
        for number, ((name, _), here, before) in enumerate(zip(points, stream, [stream[0], *stream], strict=False))
    ]
    logits = look.logits(row)
    content = {
        "row": row,
        "target": {"id": target, "name": readable_tokens(look.explored.tokenizer, [target])[0], "actual": not is_last},
        "steps": steps,
        "parts": found.parts,
        "values": found.values[:, 0, row].tolist(),
        "logit": float(logits[target] - logits.mean()),
    }
    return packed(content, {})


def worth(look: TextPass, layer: int, kind: str) -> bytes:
    """The rise in loss when a layer, and each of its heads and its FFN alone, is taken out of the unchanged model."""
    view = look.model.block_views()[look.require_layer(layer)]
    ids = look.ids[None]
    before = text_loss(look.model, ids)
    parts = [Part(layer, head) for head in range(view.mixer.n_head)]
    parts += [] if view.ffn_name is None else [Part(layer, None)]
    rises = {
        str(part): ablated_loss(look.model, ids, [part], "mean" if kind == "mean" else "zero") - before
        for part in parts
    }
    whole = layer_value(look.model, ids, layer, "mean" if kind == "mean" else "skip")
    return packed({"layer": layer, "kind": kind, "loss": before, "parts": rises, "whole": whole}, {})
