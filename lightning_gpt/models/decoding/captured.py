"""Reading one token more as one CUDA graph, over a cache whose tensors keep their shape and their place.

Launching the kernels of a small model takes several times as long as running them; a graph is launched once a token.
For that, what changes from token to token has to be in tensors: the token, its position, what each slot holds.
"""

from typing import Protocol, cast

import torch
from torch import Tensor

from lightning_gpt.models import graph
from lightning_gpt.models.kv_cache import Cache, KeyValues, LayerState, WithInputs

FEWEST_TOKENS = 16
"""Fewer new tokens are not worth a capture."""


class _Slots:
    """Where layers with equally many slots keep the tokens of a pass: worked out once, for all of them.

    Args:
        of: What one of these layers keeps of the prompt.
    """

    def __init__(self, of: KeyValues) -> None:
        self._of, self.places = of, of.places
        self._now: Tensor | None = None

    def take(self, positions: Tensor) -> Tensor:
        """The slots of new tokens at ``positions`` ``(batch, 1)``, which then hold these positions."""
        if self._now is None:
            self._now = self._of.slots(positions)
            self.places.scatter_(1, self._now, positions)
        return self._now

    def end(self) -> None:
        """The pass is over."""
        self._now = None


class FixedKeyValues(KeyValues):
    """Keys and values of one layer; each token is given every slot, with the empty ones marked.

    Args:
        grown: What the layer keeps of the prompt; its tensors are used further.
        where: The slots of this layer and of those like it.
    """

    def __init__(self, grown: KeyValues, where: _Slots) -> None:
        super().__init__(grown.capacity, grown.pinned)
        self.k, self.v, self._where = grown.k, grown.v, where

    def append(
        self, k: Tensor, v: Tensor, positions: Tensor | None, lengths: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Store one new token a row, at ``positions`` ``(batch, 1)``; returns all slots and their positions."""
        assert positions is not None
        assert self.k is not None
        self.scatter(k, v, self._where.take(positions))
        return self.k, self.v, self._where.places


class FixedCache(Cache):
    """A cache that counts in a tensor, and whose layers keep their shapes.

    Args:
        grown: A cache that holds the prompts, of layers that can be fixed.
        rows: Number of prompts.
        device: Where they are.
    """

    def __init__(self, grown: Cache, rows: int, device: torch.device) -> None:
        self._slots: dict[tuple[int, int], _Slots] = {}
        super().__init__([self._fixed(layer) for layer in grown.layers])
        self.length = grown.length
        lengths = torch.full((rows,), grown.length, device=device) if grown.lengths is None else grown.lengths
        self.lengths: Tensor = lengths.clone()

    def _fixed(self, layer: LayerState) -> LayerState:
        if isinstance(layer, WithInputs):
            return layer.changed(self._fixed)
        grown = cast(KeyValues, layer)  # the others cannot be fixed
        alike = grown.capacity, grown.pinned
        if alike not in self._slots:
            self._slots[alike] = _Slots(grown)
        return FixedKeyValues(grown, self._slots[alike])

    def advance(self, time: int, lengths: Tensor | None) -> None:
        """Count ``time`` more tokens in each row as read."""
        self.lengths.add_(time)
        for slots in self._slots.values():
            slots.end()


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
