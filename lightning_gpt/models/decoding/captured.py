"""Reading one token more as one CUDA graph, over a cache whose tensors keep their shape and their place.

Launching the kernels of a small model takes several times as long as running them; a graph is launched once a token.
For that, what changes from token to token has to be in tensors: the token, its position, what each slot holds.
"""

from typing import Protocol, cast

import torch
from torch import Tensor

from lightning_gpt.models import graph
from lightning_gpt.models.kv_cache import Cache, KeyValues

FEWEST_TOKENS = 16
"""Fewer new tokens are not worth a capture."""


class FixedKeyValues(KeyValues):
    """Keys and values of one layer, all slots of which are returned for every token, the empty ones marked as such.

    Args:
        grown: What the layer keeps of the prompt; its tensors are used further.
    """

    def __init__(self, grown: KeyValues) -> None:
        super().__init__(grown.capacity, grown.pinned)
        self.k, self.v, self.places = grown.k, grown.v, grown.places

    def append(
        self, k: Tensor, v: Tensor, positions: Tensor | None, lengths: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Store one new token a row, at ``positions`` ``(batch, 1)``; returns all slots and their positions."""
        assert positions is not None
        assert self.k is not None
        self.scatter(k, v, positions)
        return self.k, self.v, self.places


class FixedCache(Cache):
    """A cache that counts in a tensor, and whose layers keep their shapes.

    Args:
        grown: A cache that holds the prompts, of layers that can be fixed.
        rows: Number of prompts.
        device: Where they are.
    """

    def __init__(self, grown: Cache, rows: int, device: torch.device) -> None:
        super().__init__([FixedKeyValues(cast(KeyValues, layer)) for layer in grown.layers])
        self.length = grown.length
        lengths = torch.full((rows,), grown.length, device=device) if grown.lengths is None else grown.lengths
        self.lengths: Tensor = lengths.clone()

    def advance(self, time: int, lengths: Tensor | None) -> None:
        """Count ``time`` more tokens in each row as read."""
        self.lengths.add_(time)


class Reads(Protocol):
    """What is needed of a language model."""

    @property
    def can_be_graphed(self) -> bool:
        """Whether every pass runs the same kernels whatever the data."""

    def next_logits(self, ids: Tensor, lengths: Tensor | None = None, cache: Cache | None = None) -> Tensor:
        """Logits of the token after each row."""


def can_be_captured(model: Reads, cache: Cache, tokens: int, device: torch.device) -> bool:
    """Whether reading ``tokens`` more tokens a row is to be captured, and can be."""
    return (
        device.type in graph.GRAPH_DEVICES
        and tokens >= FEWEST_TOKENS
        and model.can_be_graphed
        and all(layer.can_be_fixed for layer in cache.layers)
    )


class CapturedReading:
    """Reads a token a row by replaying a graph.

    Args:
        model: In evaluation mode, without gradients.
        cache: What was kept of the prompts; it must not be used further.
        rows: Number of prompts.
        device: Where they are.
    """

    def __init__(self, model: Reads, cache: Cache, rows: int, device: torch.device) -> None:
        self._model, self._cache = model, FixedCache(cache, rows, device)
        self._tokens = torch.zeros(rows, 1, dtype=torch.long, device=device)
        # what a run before the capture writes, the first token read overwrites: it has the same position
        self._replay, self._logits = graph.capture(self._run, device, lambda: self._cache.lengths.sub_(1))

    def next_logits(self, tokens: Tensor) -> Tensor:
        """Logits ``(batch, vocab_size)`` after one more token a row, ``(batch,)``; overwritten by the next call."""
        self._tokens.copy_(tokens[:, None])
        self._replay()
        return self._logits

    def _run(self) -> Tensor:
        return self._model.next_logits(self._tokens, cache=self._cache)
