"""The three matrices of attention, taken out of a model for one text.

This is the one place that knows under which names and in which shapes the models record them.
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


@dataclass(frozen=True)
class AttentionMaps:
    """Mask, scaled QK scores and QK softmax of one text, for every layer and head.

    There are as many keys as tokens, or more where a model attends to others besides: those come first.

    Args:
        tokens: The text's tokens, made readable, ``time`` of them.
        mask: ``(n_layer, n_head, time, keys)`` booleans, true where row may attend to column.
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
        """A name for each column: the tokens, after the keys that are no token of the text."""
        others = self.pattern.shape[-1] - len(self.tokens)
        return [f"key {number}" for number in range(others)] + self.tokens

    def save(self, path: Path) -> None:
        """Write all of it to an ``.npz`` file."""
        np.savez_compressed(
            path, tokens=np.array(self.tokens), mask=self.mask, scores=self.scores, pattern=self.pattern
        )


def attention_maps(model: LanguageModel, ids: Tensor, tokens: list[str]) -> AttentionMaps:
    """The attention of ``model`` over ``ids`` ``(time,)``, whose readable tokens are ``tokens``.

    A one-head model gives one layer of one head. Where layers have other keys besides the tokens, and not equally
    many, columns that the mask hides are put before those that are fewer.

    Raises:
        CallError: Where a layer has no softmax attention to show.
    """
    try:
        with evaluating(model), model.record([f"*attention.{name}" for name in ("mask", "scores", "pattern")]) as trace:
            model.hidden(ids[None])
    except KeyError:  # what was asked for is nowhere
        raise CallError("no layer of this model has the mask, scores and softmax of attention to show") from None
    layers = _layers(model)
    without = [layer for layer, prefix in enumerate(layers) if f"{prefix}.pattern" not in trace]
    if without:
        raise CallError(
            f"the attention of layer {', '.join(map(str, without))} has no mask, scores and softmax to show"
        )

    def stacked(name: str) -> np.ndarray:
        # (1, n_head, T, K) of each block of a GPT; (1, T, K) of the one-head model; a mask may leave the first ones out
        found = [trace[f"{prefix}.{name}"] for prefix in layers]
        found = [matrix.reshape(-1, *matrix.shape[-2:]) for matrix in found]
        heads, keys = (max(matrix.shape[axis] for matrix in found) for axis in (0, -1))
        padded = [F.pad(matrix, (keys - matrix.shape[-1], 0)).expand(heads, -1, -1) for matrix in found]
        return torch.stack(padded).float().cpu().numpy()

    scores, pattern = stacked("scores"), stacked("pattern")
    return AttentionMaps(tokens, np.broadcast_to(stacked("mask") > 0, pattern.shape), scores, pattern)


def _layers(model: LanguageModel) -> list[str]:
    """The name that each layer's attention is recorded under."""
    return [view.mixer_name for view in model.block_views()]


def readable_tokens(tokenizer: Tokenizer, ids: Tensor | Sequence[int]) -> list[str]:
    """Each token as it can be printed in a line.

    ``·`` for a space, ``⏎`` for a line's end, ``⇥`` for a tab, an escape such as ``\\x1b`` for what cannot be seen or
    is part of a character only, and ``⟨300⟩`` for an id that stands for no text.
    """
    return [_readable(tokenizer.decode_bytes(int(token)), int(token)) for token in ids]


def _readable(token: bytes, number: int) -> str:
    text = token.decode("utf-8", "backslashreplace").replace(" ", "·").replace("\n", "⏎").replace("\t", "⇥")
    visible = (char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)
    return "".join(visible) or f"⟨{number}⟩"
