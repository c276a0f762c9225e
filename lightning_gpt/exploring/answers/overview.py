"""The first answer after a key: tokens, loss, all heads at a glance, and the matrices of the layer that is shown."""

from typing import Any

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from lightning_gpt.analysis.attention import maps_of
from lightning_gpt.analysis.head_matrices import OF_HEADS, matrices_of
from lightning_gpt.errors import CallError
from lightning_gpt.exploring.looking import TextPass
from lightning_gpt.exploring.packing import packed

_THUMBNAIL = 32
"""The most cells along a side of a head's thumbnail."""
_OTHER_HEADS = "heads that differ in number or size cannot be subtracted; show them side by side instead"


def overview(look: TextPass, against: TextPass | None, show: str, layer: int, head: int) -> bytes:
    """The text as the model read it, and a layer of it.

    Args:
        look: What is shown.
        against: What it is compared with.
        show: ``difference`` subtracts the matrices of ``against``, ``side`` sends them, too; ``values`` does neither.
        layer: The layer whose matrices are sent; the last if there are fewer.
        head: The head whose matrices are sent besides mask, scores and softmax, which are of every head.
    """
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
    arrays = _compared(look, against, show, layer, head)
    if show == "difference" and against is not None:
        return packed(content, {"thumbnails": _changes(look, against), **arrays})
    if show == "side" and against is not None:
        arrays["other.thumbnails"] = _thumbnails(against)
    return packed(content, {"thumbnails": _thumbnails(look), **arrays})


def layer_matrices(look: TextPass, against: TextPass | None, show: str, layer: int, head: int) -> bytes:
    """A layer's mask, scores and softmax of every head, and the other matrices of one."""
    look.require_head(layer, head)
    content = {"layer": layer, "head": head, **_of_layer(look, layer)}
    return packed(content, _compared(look, against, show, layer, head))


def _of_layer(look: TextPass, layer: int) -> dict[str, Any]:
    mixer = look.model.block_views()[layer].mixer
    keys = maps_of(look.model, look.trace, look.tokens, layer).keys
    return {"keys": keys, "headDim": mixer.head_dim, "biased": look.model.positions.biases, "heads": mixer.n_head}


def _compared(look: TextPass, against: TextPass | None, show: str, layer: int, head: int) -> dict[str, np.ndarray]:
    found = _of_head(look, layer, head)
    if against is None or show == "values":
        return found
    if look.ids.tolist() != against.ids.tolist():
        raise CallError("the two passes read different tokens, so their matrices cannot be compared")
    return _subtracted(look, against, found, layer, head) if show == "difference" else _beside(against, found, layer)


def _subtracted(
    look: TextPass, against: TextPass, found: dict[str, np.ndarray], layer: int, head: int
) -> dict[str, np.ndarray]:
    """What is shown less the same of ``against``, and what is shown as ``.shown``."""
    one, other = (len(each.model.block_views()) for each in (look, against))
    if one != other:
        raise CallError(
            f"a model of {one} layers and one of {other} cannot be subtracted; show them side by side instead"
        )
    others = _of_head(against, layer, min(head, against.model.block_views()[layer].mixer.n_head - 1))
    arrays = {"mask": found.pop("mask")}
    for name, matrix in found.items():
        if name in others and others[name].shape == matrix.shape:
            arrays[name] = matrix - others[name]
            arrays[f"{name}.shown"] = matrix
    if not {"scores", "pattern"} <= set(arrays):
        raise CallError(_OTHER_HEADS)
    return arrays


def _beside(against: TextPass, found: dict[str, np.ndarray], layer: int) -> dict[str, np.ndarray]:
    """What is shown, and mask, scores and softmax of the same layer of ``against``, or of its last one."""
    maps = maps_of(against.model, against.trace, against.tokens, min(layer, len(against.model.block_views()) - 1))
    if maps.pattern.shape[-1] != found["pattern"].shape[-1]:
        columns = f"{found['pattern'].shape[-1]} and {maps.pattern.shape[-1]} columns"
        raise CallError(f"the attention maps have {columns}, so they cannot stand side by side")
    others = {"mask": maps.mask[0], "scores": maps.scores[0], "pattern": maps.pattern[0]}
    return {**found, **{f"other.{name}": matrix for name, matrix in others.items()}}


def _of_head(look: TextPass, layer: int, head: int) -> dict[str, np.ndarray]:
    maps = maps_of(look.model, look.trace, look.tokens, layer)
    arrays = {"mask": maps.mask[0], "scores": maps.scores[0], "pattern": maps.pattern[0]}
    n_head = maps.n_head
    for symbol, matrix in matrices_of(look.model, look.trace, layer).items():
        # heads may share keys and values
        arrays[symbol] = matrix[head * len(matrix) // n_head] if symbol in OF_HEADS else matrix
    return arrays


def _thumbnails(look: TextPass) -> np.ndarray:
    """Every head's pattern, in blocks whose largest weight is shown: ``(layers, heads, side, side)``, 0 to 255."""
    found = []
    for pattern in _patterns(look):
        shares = pattern / pattern.amax(dim=-1, keepdim=True).clamp(min=1e-30)
        found.append((255 * F.adaptive_max_pool2d(shares, _side(pattern)))[0])
    return _stacked(found)


def _changes(look: TextPass, against: TextPass) -> np.ndarray:
    """The same of the largest change in each block: 128 is none, and 1 and 255 are the largest of any head."""
    found = []
    for pattern, before in zip(_patterns(look), _patterns(against), strict=True):
        if pattern.shape != before.shape:
            raise CallError(_OTHER_HEADS)
        change = pattern - before
        most = F.adaptive_max_pool2d(change, _side(change))
        least = -F.adaptive_max_pool2d(-change, _side(change))
        found.append(most.where(most > -least, least)[0])
    largest = max(float(each.abs().max()) for each in found) or 1.0
    return _stacked([128 + 127 * each / largest for each in found])


def _patterns(look: TextPass) -> list[Tensor]:
    """Every layer's pattern, ``(1, heads, time, keys)``."""
    found = (look.trace[f"{view.mixer_name}.pattern"].float() for view in look.model.block_views())
    return [pattern.reshape(1, -1, *pattern.shape[-2:]) for pattern in found]


def _side(pattern: Tensor) -> list[int]:
    return [min(_THUMBNAIL, size) for size in pattern.shape[-2:]]


def _stacked(found: list[Tensor]) -> np.ndarray:
    heads, rows, columns = (max(each.shape[axis] for each in found) for axis in range(3))
    stacked = np.zeros((len(found), heads, rows, columns), dtype=np.uint8)
    for layer, each in enumerate(found):
        stacked[layer, : each.shape[0], : each.shape[1], : each.shape[2]] = each.round().cpu().numpy()
    return stacked
