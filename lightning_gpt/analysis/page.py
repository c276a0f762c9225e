"""One self-contained HTML page of a text's attention: no network, no server, opened from a file.

The page is ``assets/inspect.html`` with its style, its scripts and one JSON object put in. Large arrays travel in the
JSON as gzip and base64, layer by layer, and are unpacked by the browser when a layer is looked at.
"""

import base64
import gzip
import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from lightning_gpt.analysis.attention import AttentionMaps
from lightning_gpt.analysis.logit_lens import LogitLens
from lightning_gpt.errors import CallError

MOST_BYTES = 128 * 2**20
"""The most that the scores and patterns of a page may take in the browser's memory."""

_EXACT_BYTES = 8 * 2**20  # up to here the page keeps float32
_SCRIPTS = ("arrays", "colours", "matrix", "lens", "page")


@dataclass(frozen=True)
class Ablated:
    """The change in loss, in nats, when each part is ablated by itself.

    Args:
        kind: ``zero`` or ``mean``.
        parts: What the columns are: the heads' numbers, then ``ffn`` where there is one.
        change: ``(n_layer, parts)``.
    """

    kind: str
    parts: list[str]
    change: np.ndarray

    def to_json(self) -> dict[str, Any]:
        """Plain values; JSON has no NaN, so a change that is no number is null."""
        change = [[value if math.isfinite(value) else None for value in row] for row in self.change.tolist()]
        return {"kind": self.kind, "parts": self.parts, "change": change}


def layers_of_page(maps: AttentionMaps, wanted: Sequence[int] | None) -> list[int]:
    """The layers that a page of ``maps`` holds: those wanted, or all.

    Raises:
        CallError: Where a layer does not exist, or the page would be too large to open.
    """
    layers = list(range(maps.n_layer)) if wanted is None else sorted(set(wanted))
    for layer in layers:
        if not 0 <= layer < maps.n_layer:
            raise CallError(
                f"page_layers has {layer}; this model has {maps.n_layer} (allowed: 0 to {maps.n_layer - 1})"
            )
    time, keys = maps.pattern.shape[-2:]
    of_layer = 2 * 2 * maps.n_head * time * keys  # scores and pattern, float16
    if of_layer * len(layers) > MOST_BYTES:
        fitting = MOST_BYTES // of_layer
        shorter = math.isqrt(MOST_BYTES // (4 * maps.n_head))
        advice = f"at most {fitting} layers fit: choose them with page_layers" if fitting else f"give {shorter} tokens"
        raise CallError(
            f"the page would hold {of_layer * len(layers) / 2**20:,.0f} MiB of attention ({len(layers)} layers, "
            f"{maps.n_head} heads, {time:,} tokens) and its limit is {MOST_BYTES / 2**20:,.0f} MiB: {advice}, "
            f"or page_layers [] for no page"
        )
    return layers


@dataclass(frozen=True, kw_only=True)
class Page:
    """What the page of one text shows.

    Args:
        title: The page's heading.
        facts: What is said of the model under it, a value by its name.
        maps: Attention of every layer and head.
        head_dim: The d under the root of the scores.
        biased: Whether the position scheme adds a B to them.
        layers: Which layers' matrices the page holds; see :func:`layers_of_page`.
        ids: The text's token ids, ``time`` of them.
        lens: The likeliest next tokens by depth.
        vocabulary: A readable text for every id in ``lens``.
        start: The layer and head that the page opens with.
        ablated: What taking out each part does to the loss, where that was asked for.
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

    def write(self, path: Path) -> None:
        """Write the page to ``path``."""
        path.write_text(self.text(), "utf-8")

    def text(self) -> str:
        """The page: the template with the style, the scripts and the data put in."""
        assets = resources.files("lightning_gpt.analysis").joinpath("assets")
        parts = {
            "style": assets.joinpath("inspect.css").read_text("utf-8"),
            "script": "\n".join(assets.joinpath(f"inspect_{name}.js").read_text("utf-8") for name in _SCRIPTS),
            # "<" is the one character that could end or change the element that holds the data
            "data": json.dumps(self._data()).replace("<", "\\u003c"),
        }
        template = assets.joinpath("inspect.html").read_text("utf-8")
        # one pass, so that nothing in the data is taken for a place to fill
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


def _storage(scores: np.ndarray, pattern: np.ndarray) -> type[np.floating[Any]]:
    """float32 where the page stays small or a score is beyond float16, else float16: at most 0.05 % off."""
    if scores.nbytes + pattern.nbytes <= _EXACT_BYTES or not np.abs(scores).max() <= np.finfo(np.float16).max:
        return np.float32
    return np.float16


def _distinct(masks: np.ndarray) -> tuple[list[np.ndarray], list[list[int]]]:
    """The different masks among ``(layers, heads, time, keys)``, and which of them each layer and head has."""
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
    """``array`` as the browser reads it: little-endian, gzip (the same bytes each time), base64."""
    little = array.astype(array.dtype.newbyteorder("<"), copy=False)
    return base64.b64encode(gzip.compress(little.tobytes(), 6, mtime=0)).decode()
