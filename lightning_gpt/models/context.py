"""What the layers of one forward pass share besides the residual stream."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from lightning_gpt.models.kv_cache import Cache, LayerState
from lightning_gpt.models.positions.scheme import Positions

T = TypeVar("T")


@dataclass(frozen=True)
class Context:
    """Where the tokens of a pass stand, and what they may look back on.

    Args:
        at: Positions of the tokens, ``(time,)`` or ``(batch, time)``; 0 to time − 1 when None.
        documents: ``(batch, time)``, the document that each token is of, where documents are kept apart.
        scheme: How positions act.
        cache: The states of the layers, where earlier tokens were read before.
        lengths: ``(batch,)``, how many tokens of each row are real, where rows are padded at their end.
        layer: The layer that is being run.
        memo: What the layers of this pass have made for each other; None where one layer is run by itself.
        ids: ``(batch, time)``, the tokens themselves; None where one layer is run by itself.
    """

    at: Tensor | None = None
    documents: Tensor | None = None
    scheme: Positions | None = None
    cache: Cache | None = None
    lengths: Tensor | None = None
    layer: int = 0
    memo: dict[Any, Any] | None = None
    ids: Tensor | None = None

    def layered(self, layer: int) -> "Context":
        """The same for another layer."""
        return self if self.cache is None else replace(self, layer=layer)

    @property
    def state(self) -> LayerState | None:
        """What the layer that is run keeps of earlier tokens."""
        return None if self.cache is None else self.cache.layers[self.layer]

    def positions(self, time: int, device: torch.device) -> Tensor:
        """The positions of the tokens as numbers, also where they are plain."""
        return torch.arange(time, device=device) if self.at is None else self.at

    def turn(self, x: Tensor) -> Tensor:
        """Queries or keys as the position scheme turns them."""
        return x if self.scheme is None else self.scheme.turn(x, self.at)

    def once(self, key: Any, make: Callable[[], T]) -> T:
        """What ``make`` gives, made by the first layer of the pass that asks under this key."""
        if self.memo is None:
            return make()
        if key not in self.memo:
            self.memo[key] = make()
        made: T = self.memo[key]
        return made
