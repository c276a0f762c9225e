"""The three matrices of attention, taken out of a model for one text."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor

from lightning_gpt.data.tokenizer import Tokenizer
from lightning_gpt.models import LanguageModel
from lightning_gpt.models.base import evaluating


@dataclass(frozen=True)
class AttentionMaps:
    """Causal mask, scaled QK scores and QK softmax of one text, for every layer and head.

    Args:
        tokens: The text's tokens, made readable, ``time`` of them.
        mask: ``(time, time)`` booleans, true where row may attend to column.
        scores: ``(n_layer, n_head, time, time)``, ``Q Kᵀ / √d`` before the mask.
        pattern: ``(n_layer, n_head, time, time)``, the softmax over the allowed positions.
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

    def save(self, path: Path) -> None:
        """Write all of it to an ``.npz`` file."""
        np.savez_compressed(
            path, tokens=np.array(self.tokens), mask=self.mask, scores=self.scores, pattern=self.pattern
        )


def attention_maps(model: LanguageModel, ids: Tensor, tokens: list[str]) -> AttentionMaps:
    """The attention of ``model`` over ``ids`` ``(time,)``, whose readable tokens are ``tokens``.

    A one-head model gives one layer of one head.
    """
    wanted = [f"*attention.{name}" for name in ("mask", "scores", "pattern")]
    with evaluating(model), model.record(wanted) as trace:
        model.hidden(ids[None])

    def all_layers(name: str) -> np.ndarray:
        # (n_layer, 1, n_head, T, T) of a GPT; (1, T, T) of the one-head model
        stacked = trace[f"attention.{name}"] if f"attention.{name}" in trace else trace.layers(f"attention.{name}")
        time = stacked.shape[-1]
        layers = stacked.shape[0] if stacked.ndim == 5 else 1
        return stacked.reshape(layers, -1, time, time).float().cpu().numpy()

    first_mask = next(trace[name] for name in trace if name.endswith("attention.mask"))
    return AttentionMaps(tokens, first_mask.cpu().numpy(), all_layers("scores"), all_layers("pattern"))


def readable_tokens(tokenizer: Tokenizer, ids: Tensor) -> list[str]:
    """Each token as it can be printed: ``·`` for a space, ``⏎`` for a line's end, ``\\x..`` for a broken character."""
    texts = (tokenizer.decode_bytes(int(token)).decode("utf-8", "backslashreplace") for token in ids)
    return [text.replace(" ", "·").replace("\n", "⏎").replace("\t", "⇥") for text in texts]
