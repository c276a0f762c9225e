"""One self-contained HTML page of a text's attention, which opens from a file without a network or a server.

The page is ``assets/inspect.html`` with its style, its scripts and one JSON object filled in. The JSON holds large
arrays as gzip and base64, layer by layer; the browser unpacks a layer when it is first shown.
"""

import base64
import gzip
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from lightning_gpt.analysis.attention import AttentionMaps
from lightning_gpt.analysis.logit_lens import LogitLens
from lightning_gpt.errors import CallError
from lightning_gpt.json_text import to_json

MOST_BYTES = 128 * 2**20
"""Limit for the scores and patterns of a page, in bytes of browser memory."""

_EXACT_BYTES = 8 * 2**20  # up to this size the page stores float32
_SCRIPTS = ("dom", "run", "arrays", "colours", "labels", "matrix", "strips", "lens", "text", "view", "ablation", "file")
"""The page's modules in an order in which each follows what it imports."""
_MODULE = re.compile(
    r'^import [^;]*?from "\./(\w+)\.js";\n|^export (?=(?:async )?(?:const|let|function|class)\b)', re.M
)


@dataclass(frozen=True)
class Ablated:
    """The change in loss, in nats, when each part is ablated separately.

    Args:
        kind: ``zero`` or ``mean``.
        parts: The columns: head numbers, then ``ffn`` if there is one.
        change: ``(n_layer, parts)``.
    """

    kind: str
    parts: list[str]
    change: np.ndarray

    def to_json(self) -> dict[str, Any]:
        """Plain values; JSON has no NaN, so a change that is not finite becomes null."""
        change = [[value if math.isfinite(value) else None for value in row] for row in self.change.tolist()]
        return {"kind": self.kind, "parts": self.parts, "change": change}


def layers_of_page(maps: AttentionMaps, wanted: Sequence[int] | None, more: int = 0) -> list[int]:
    """The layers that a page of ``maps`` contains: those in ``wanted``, or all if it is None.

    ``more`` is how many numbers a layer holds besides scores and softmax; see :func:`vector_numbers`.

    Raises:
        CallError: If a layer does not exist, or the page would be too large to open.
    """
    layers = list(range(maps.n_layer)) if wanted is None else sorted(set(wanted))
    for layer in layers:
        if not 0 <= layer < maps.n_layer:
            has = f"{maps.n_layer} layer{'' if maps.n_layer == 1 else 's'}"
            raise CallError(f"page_layers has {layer}; this model has {has} (allowed: 0 to {maps.n_layer - 1})")
    time, keys = maps.pattern.shape[-2:]
    of_layer = 2 * 2 * maps.n_head * time * keys + 2 * more  # scores, pattern and the rest, float16
    if of_layer * len(layers) > MOST_BYTES:
        fitting = MOST_BYTES // of_layer
        shorter = _fitting_tokens(4 * maps.n_head, 2 * more / time)
        advice = f"choose at most {fitting} with page_layers" if fitting else f"use a text of at most {shorter} tokens"
        raise CallError(
            f"the page would hold {of_layer * len(layers) / 2**20:,.0f} MiB of attention ({len(layers)} layers, "
            f"{maps.n_head} heads, {time:,} tokens); its limit is {MOST_BYTES / 2**20:,.0f} MiB: {advice}, "
            f"or skip the page with page_layers []"
        )
    return layers


def _fitting_tokens(squared: int, linear: float) -> int:
    """The tokens of the longest text that fits: the largest t with ``squared t² + linear t <= MOST_BYTES``."""
    return int((math.sqrt(linear * linear + 4 * squared * MOST_BYTES) - linear) / (2 * squared))


def vector_numbers(vectors: Sequence[Mapping[str, np.ndarray]]) -> int:
    """The most numbers that a layer's matrices besides mask, scores and softmax hold."""
    return max(sum(matrix.size for matrix in layer.values()) for layer in vectors)


def names_of_lens(lens: LogitLens, readable: Callable[[list[int]], list[str]]) -> dict[int, str]:
    """Readable text for every token in the lens."""
    return names_of(lens.top, readable)


def names_of(ids: np.ndarray, readable: Callable[[list[int]], list[str]]) -> dict[int, str]:
    """Readable text for each of ``ids`` (of any shape), by its id."""
    shown = np.unique(ids).tolist()
    return dict(zip(shown, readable(shown), strict=True))


@dataclass(frozen=True, kw_only=True)
class Page:
    """The content of the page of one text.

    Args:
        title: Heading of the page.
        facts: Facts about the model shown under the heading, by name.
        maps: Attention of every layer and head.
        head_dim: The d in the scores' ``√d``.
        biased: Whether the position scheme adds a bias B to the scores.
        layers: Layers whose matrices the page contains; see :func:`layers_of_page`.
        ids: The ``time`` token ids of the text.
        lens: The most likely next tokens by layer.
        vocabulary: Readable text for every id in ``lens``.
        start: The layer and head shown first.
        ablated: The change in loss for each ablated part, if it was measured.
        vectors: Every layer's matrices besides mask, scores and softmax, from
            :func:`~lightning_gpt.analysis.head_matrices.head_activations`; the page is without them if empty.
    """

    title: str
    facts: dict[str, str]
    maps: AttentionMaps
    head_dim: int
    biased: bool = False
    layers: Sequence[int]
    ids: Sequence[int]
    lens: LogitLens
    vocabulary: dict[int, str]
    start: tuple[int, int] = (0, 0)
    ablated: Ablated | None = None
    vectors: Sequence[Mapping[str, np.ndarray]] = ()

    def write(self, path: Path) -> None:
        """Write the page to ``path``."""
        path.write_text(self.text(), "utf-8")

    def text(self) -> str:
        """The template with the style, the scripts and the data filled in."""
        assets = resources.files("lightning_gpt.analysis").joinpath("assets")
        parts = {
            "style": assets.joinpath("page.css").read_text("utf-8"),
            "script": "\n".join(_as_one_script(assets.joinpath(f"{name}.js").read_text("utf-8")) for name in _SCRIPTS),
            **{name: assets.joinpath(f"{name}.html").read_text("utf-8") for name in ("attention", "lens")},
            # "<" is the only character that could end or change the element around the data
            "data": to_json(self._data(), ascii_only=True).replace("<", "\\u003c"),
        }
        template = assets.joinpath("inspect.html").read_text("utf-8")
        # in one pass, so that nothing in the data is mistaken for a placeholder
        return re.sub(r"\{\{(\w+)\}\}", lambda place: parts[place[1]], template)

    def _data(self) -> dict[str, Any]:
        chosen, maps, lens = list(self.layers), self.maps, self.lens
        mask, scores, pattern = (matrix[chosen] for matrix in (maps.mask, maps.scores, maps.pattern))
        kind = _storage(scores, pattern)
        masks, mask_of_head = _distinct(mask)
        return {
            "title": self.title,
            "facts": self.facts,
            "tokens": maps.tokens,
            "ids": list(self.ids),
            "keys": maps.keys,
            "layers": chosen,
            "layerCount": maps.n_layer,
            "headCount": maps.n_head,
            "headDim": self.head_dim,
            "biased": self.biased,
            "type": np.dtype(kind).name,
            "masks": [_packed(mask.astype(np.uint8)) for mask in masks],
            "maskOfHead": mask_of_head,
            "scores": [_packed(layer.astype(kind)) for layer in scores],
            "pattern": [_packed(layer.astype(kind)) for layer in pattern],
            "vectors": [self._vectors_of(layer, kind) for layer in chosen] if self.vectors else [],
            "lens": {
                "depths": lens.depths,
                "k": lens.top.shape[-1],
                "top": _packed(lens.top.astype(np.int32)),
                "probability": _packed(lens.probability.astype(np.float32)),
                "nll": _packed(lens.nll.astype(np.float32)),
            },
            "vocabulary": self.vocabulary,
            "start": list(self.start),
            "ablated": self.ablated and self.ablated.to_json(),
        }

    def _vectors_of(self, layer: int, kind: type[np.floating[Any]]) -> dict[str, Any]:
        found = self.vectors[layer]
        largest = max(float(np.abs(matrix).max()) for matrix in found.values())
        kind = kind if largest <= np.finfo(np.float16).max else np.float32
        return {
            "type": np.dtype(kind).name,
            **{
                symbol: {"shape": matrix.shape, "data": _packed(matrix.astype(kind))}
                for symbol, matrix in found.items()
            },
        }


def _as_one_script(module: str) -> str:
    """A module without its imports and exports, to stand in one script with those it imports."""
    return _MODULE.sub("", module)


def _storage(scores: np.ndarray, pattern: np.ndarray) -> type[np.floating[Any]]:
    """float32 if the page stays small or a score exceeds float16's range, else float16.

    That is at most 0.05 % off for numbers above 6e-5, and at most 3e-8 off for smaller ones.
    """
    if scores.nbytes + pattern.nbytes <= _EXACT_BYTES or not np.abs(scores).max() <= np.finfo(np.float16).max:
        return np.float32
    return np.float16


def _distinct(masks: np.ndarray) -> tuple[list[np.ndarray], list[list[int]]]:
    """The distinct masks among ``(layers, heads, time, keys)``, and the number of each head's mask by layer."""
    found: dict[bytes, int] = {}
    kept: list[np.ndarray] = []
    of_head: list[list[int]] = []
    for layer in masks:
        numbers = []
        for mask in layer:
            number = found.setdefault(np.packbits(mask).tobytes(), len(found))
            if number == len(kept):
                kept.append(mask)
            numbers.append(number)
        of_head.append(numbers)
    return kept, of_head


def _packed(array: np.ndarray) -> str:
    """``array`` as the browser reads it: little-endian, gzip (without a time stamp, so reproducible), base64."""
    little = array.astype(array.dtype.newbyteorder("<"), copy=False)
    return base64.b64encode(gzip.compress(little.tobytes(), 6, mtime=0)).decode()
