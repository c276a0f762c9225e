"""The first answer after a key: tokens, loss, all heads at a glance, and the matrices of the layer that is shown."""

from typing import Any

import numpy as np
import torch.nn.functional as F

from lightning_gpt.analysis.attention import maps_of
from lightning_gpt.analysis.head_matrices import OF_HEADS, matrices_of
from lightning_gpt.errors import CallError
from lightning_gpt.exploring.looking import TextPass
from lightning_gpt.exploring.packing import packed

_THUMBNAIL = 32
"""The most cells along a side of a head's thumbnail."""


def overview(look: TextPass, against: TextPass | None, difference: bool, layer: int, head: int) -> bytes:
    """The text as the model read it, and a layer of it; as differences from ``against`` if that is asked for."""
    views, model = look.model.block_views(), look.model
    layer = min(layer, len(views) - 1)  # another model may have fewer
    head = min(head, views[layer].mixer.n_head - 1)
    content: dict[str, Any] = {
        "tokens": look.tokens,
        "ids": look.ids.tolist(),
        "moreText": look.explored.tokenizer.decode(list(look.shown.more)),
        "loss": look.loss,
        "nll": look.nll.tolist(),
        "before": against and {"loss": against.loss, "nll": against.nll.tolist()},
        "layerCount": len(views),
        "headCounts": [view.mixer.n_head for view in views],
        "hasFfn": [view.ffn_name is not None for view in views],
        "layer": layer,
        "head": head,
        "facts": {
            "model": model.class_name,
            "parameters": f"{sum(parameter.numel() for parameter in model.parameters()):,}",
            "width": f"{model.config.dim:,}",
            "vocabulary": f"{model.config.vocab_size:,}",
        },
        **_of_layer(look, layer),
    }
    against = _subtracted(look, against, difference)
    return packed(content, {"thumbnails": _thumbnails(look, against), **_matrices(look, against, layer, head)})


def layer_matrices(look: TextPass, against: TextPass | None, difference: bool, layer: int, head: int) -> bytes:
    """A layer's mask, scores and softmax of every head, and the other matrices of one."""
    look.require_head(layer, head)
    against = _subtracted(look, against, difference)
    content = {"layer": layer, "head": head, **_of_layer(look, layer)}
    return packed(content, _matrices(look, against, layer, head))


def _of_layer(look: TextPass, layer: int) -> dict[str, Any]:
    mixer = look.model.block_views()[layer].mixer
    keys = maps_of(look.model, look.trace, look.tokens, layer).keys
    return {"keys": keys, "headDim": mixer.head_dim, "biased": look.model.positions.biases, "heads": mixer.n_head}


def _subtracted(look: TextPass, against: TextPass | None, difference: bool) -> TextPass | None:
    if against is None or not difference:
        return None
    _require_alike(look, against)
    return against


def _require_alike(look: TextPass, against: TextPass) -> None:
    for name, one, other in (
        ("tokens", len(look.ids), len(against.ids)),
        ("layers", len(look.model.block_views()), len(against.model.block_views())),
    ):
        if one != other:
            raise CallError(f"there is no difference between {one} and {other} {name}")
    if look.ids.tolist() != against.ids.tolist():
        raise CallError("the models cut the text into other tokens, so there is no difference")


def _matrices(look: TextPass, against: TextPass | None, layer: int, head: int) -> dict[str, np.ndarray]:
    found = _of_head(look, layer, head)
    if against is None:
        return found
    other = _of_head(against, layer, min(head, against.model.block_views()[layer].mixer.n_head - 1))
    arrays = {"mask": found.pop("mask")}
    for name, matrix in found.items():
        if name in other and other[name].shape == matrix.shape:
            arrays[name] = matrix - other[name]
            arrays[f"{name}.shown"] = matrix
    if not {"scores", "pattern"} <= set(arrays):
        raise CallError("there is no difference between heads of other numbers or sizes")
    return arrays


def _of_head(look: TextPass, layer: int, head: int) -> dict[str, np.ndarray]:
    maps = maps_of(look.model, look.trace, look.tokens, layer)
    arrays = {"mask": maps.mask[0], "scores": maps.scores[0], "pattern": maps.pattern[0]}
    n_head = maps.n_head
    for symbol, matrix in matrices_of(look.model, look.trace, layer).items():
        # heads may share keys and values
        arrays[symbol] = matrix[head * len(matrix) // n_head] if symbol in OF_HEADS else matrix
    return arrays


def _thumbnails(look: TextPass, against: TextPass | None) -> np.ndarray:
    """Every head's pattern, in blocks whose largest weight is shown: ``(layers, heads, side, side)``, 0 to 255.

    Of differences, the largest change: 128 is none, and 1 and 255 are the largest of any head.
    """
    found = []
    for view in look.model.block_views():
        pattern = look.trace[f"{view.mixer_name}.pattern"].float()
        pattern = pattern.reshape(1, -1, *pattern.shape[-2:])
        side = [min(_THUMBNAIL, size) for size in pattern.shape[-2:]]
        if against is None:
            shares = pattern / pattern.amax(dim=-1, keepdim=True).clamp(min=1e-30)
            found.append((255 * F.adaptive_max_pool2d(shares, side))[0])
            continue
        change = pattern - against.trace[f"{view.mixer_name}.pattern"].float().reshape(pattern.shape)
        most, least = F.adaptive_max_pool2d(change, side), -F.adaptive_max_pool2d(-change, side)
        found.append(most.where(most > -least, least)[0])
    if against is not None:
        largest = max(float(each.abs().max()) for each in found) or 1.0
        found = [128 + 127 * each / largest for each in found]
    heads, rows, columns = (max(each.shape[axis] for each in found) for axis in range(3))
    stacked = np.zeros((len(found), heads, rows, columns), dtype=np.uint8)
    for layer, each in enumerate(found):
        stacked[layer, : each.shape[0], : each.shape[1], : each.shape[2]] = each.round().cpu().numpy()
    return stacked
