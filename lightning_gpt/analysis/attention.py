"""The three matrices of attention of a model over one text: mask, scores and softmax.

Only this file knows the names and shapes in which the models record them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_gpt.data.tokenizer import Tokenizer
from lightning_gpt.errors import CallError
from lightning_gpt.models import LanguageModel
from lightning_gpt.models.evaluating import evaluating
from lightning_gpt.models.record import Trace


@dataclass(frozen=True)
class AttentionMaps:
    """Mask, scaled QK scores and softmax over one text, for every layer and head.

    There is one key per token. Where a model also attends to other keys, those come first.

    Args:
        tokens: The ``time`` tokens of the text in readable form.
        mask: ``(n_layer, n_head, time, keys)`` booleans, true where the row may attend to the column.
        scores: ``(n_layer, n_head, time, keys)``, ``Q Kᵀ / √d`` before the mask.
        pattern: ``(n_layer, n_head, time, keys)``, the softmax over the allowed positions.
    """

    tokens: list[str]
    mask: np.ndarray
    scores: np.ndarray
    pattern: np.ndarray

    @property
    def n_layer(self) -> int:
        return len(self.pattern)

    @property
    def n_head(self) -> int:
        return int(self.pattern.shape[1])

    @property
    def keys(self) -> list[str]:
        """Column names: first the keys that are not tokens of the text, then the tokens."""
        others = self.pattern.shape[-1] - len(self.tokens)
        return [f"key {number}" for number in range(others)] + self.tokens

    def save(self, path: Path) -> None:
        """Write all arrays to an ``.npz`` file."""
        np.savez_compressed(
            path, tokens=np.array(self.tokens), mask=self.mask, scores=self.scores, pattern=self.pattern
        )


class NoPattern(CallError):  # noqa: N818
    """A layer mixes tokens without softmax attention, so it has no pattern to show."""


def attention_maps(model: LanguageModel, ids: Tensor, tokens: list[str]) -> AttentionMaps:
    """The attention of ``model`` over ``ids`` ``(time,)``, whose readable tokens are ``tokens``.

    Raises:
        NoPattern: If a layer has no softmax attention.
    """
    try:
        with evaluating(model), model.record([f"*attention.{name}" for name in ("mask", "scores", "pattern")]) as trace:
            model.hidden(ids[None])
    except KeyError:  # no intermediate matches
        raise NoPattern(
            "no layer of this model has softmax attention, so there is no mask, scores or softmax to show"
        ) from None
    return maps_of(model, trace, tokens)


def maps_of(model: LanguageModel, trace: Trace, tokens: list[str], layer: int | None = None) -> AttentionMaps:
    """The attention that ``trace`` recorded of a pass over one text.

    A one-head model has one layer with one head. Where layers have different numbers of keys besides the tokens,
    masked columns are put in front of the layers that have fewer.

    Args:
        model: The model.
        trace: Has ``mask``, ``scores`` and ``pattern`` of each layer asked for.
        tokens: The readable tokens of the text.
        layer: This layer alone, as the only layer of the maps; all if None.

    Raises:
        NoPattern: If a layer has no softmax attention.
    """
    layers = _layers(model) if layer is None else [_layers(model)[layer]]
    without = [number for number, prefix in enumerate(layers) if f"{prefix}.pattern" not in trace]
    if without:
        numbers = ", ".join(map(str, without))
        raise NoPattern(f"layers without softmax attention: {numbers}; they have no mask, scores and softmax to show")

    def stacked(name: str) -> np.ndarray:
        # (1, n_head, T, K) for a block of a GPT, (1, T, K) for the one-head model; a mask may lack the leading axes
        found = [trace[f"{prefix}.{name}"] for prefix in layers]
        found = [matrix.reshape(-1, *matrix.shape[-2:]) for matrix in found]
        heads, keys = (max(matrix.shape[axis] for matrix in found) for axis in (0, -1))
        padded = [F.pad(matrix, (keys - matrix.shape[-1], 0)).expand(heads, -1, -1) for matrix in found]
        return torch.stack(padded).float().cpu().numpy()

    scores, pattern = stacked("scores"), stacked("pattern")
    return AttentionMaps(tokens, np.broadcast_to(stacked("mask") > 0, pattern.shape), scores, pattern)


def _layers(model: LanguageModel) -> list[str]:
    """The name under which each layer's attention is recorded."""
    return [view.mixer_name for view in model.block_views()]


def readable_tokens(tokenizer: Tokenizer, ids: Tensor | Sequence[int]) -> list[str]:
    """Each token as printable text on one line.

    ``·`` is a space, ``⏎`` a line break and ``⇥`` a tab. Invisible characters and parts of a character become an escape
    such as ``\\x1b``; an id without text becomes ``⟨300⟩``.
    """
    return [_readable(tokenizer.decode_bytes(int(token)), int(token)) for token in ids]


def _readable(token: bytes, number: int) -> str:
    text = token.decode("utf-8", "backslashreplace").replace(" ", "·").replace("\n", "⏎").replace("\t", "⇥")
    visible = (char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)
    return "".join(visible) or f"⟨{number}⟩"
