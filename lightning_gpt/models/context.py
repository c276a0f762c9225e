"""What the layers of one forward pass share besides the residual stream."""

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

from lightning_gpt.models.kv_cache import Cache, LayerState
from lightning_gpt.models.part_losses import PartLosses
from lightning_gpt.models.positions.scheme import Positions

T = TypeVar("T")


class Once(dict[Hashable, T]):
    """Values that the first layer of a pass that needs them makes, by key."""

    def made(self, key: Hashable, make: Callable[[], T]) -> T:
        """The value under ``key``, from ``make`` where there is none yet."""
        if key not in self:
            self[key] = make()
        return self[key]


class _Never(Once[T]):
    """Keeps nothing: each value is made when it is asked for."""

    def made(self, key: Hashable, make: Callable[[], T]) -> T:
        return make()


@dataclass(frozen=True)
class Shared:
    """What the layers of a pass have made for each other.

    Args:
        masks: What a query sees.
        biases: What the position scheme adds to scores, masked.
        rotations: Cosines and sines of rotary positions.
        layouts: A kind's own cut of the sequence into blocks or chunks.
        carried: What one layer makes of the residual stream for later ones. A pipeline has to send it along; of the
            rest, which is made of where the tokens stand, any device can make its own.
    """

    masks: Once[Tensor] = field(default_factory=Once)
    biases: Once[Tensor] = field(default_factory=Once)
    rotations: Once[tuple[Tensor, Tensor]] = field(default_factory=Once)
    layouts: Once[Any] = field(default_factory=Once)
    carried: Once[Tensor] = field(default_factory=Once)

    def initial_stream(self, x: Tensor) -> Tensor:
        """The stream ``(batch, time, dim)`` that the first layer was given: ``x``, where that is this one."""
        return self.carried.made("initial stream", lambda: x)

    def first_values(self, who: Hashable, v: Tensor) -> Tensor:
        """The values of the first layer that asks as ``who``: ``v``, where that is this one."""
        return self.carried.made(("first values", who), lambda: v)


_ALONE = Shared(_Never(), _Never(), _Never(), _Never(), _Never())  # of a layer that is run by itself


@dataclass(frozen=True)
class Context:
    """Where the tokens of a pass stand, and what they may look back on.

    Args:
        positions: Of the tokens, ``(time,)`` or ``(batch, time)``; 0 to time − 1 when None.
        documents: ``(batch, time)``, the document of each token, where documents are kept apart.
        scheme: How positions act.
        cache: The states of the layers, where earlier tokens were read before.
        state: That of the layer that is being run.
        lengths: ``(batch,)``, how many tokens of each row are real, where rows are padded at their end.
        ids: ``(batch, time)``, the tokens themselves; None where one layer is run by itself.
        losses: What parts attach their losses with; None where no training loss is made of the pass.
        shared: What the layers have made for each other.
    """

    positions: Tensor | None = None
    documents: Tensor | None = None
    scheme: Positions | None = None
    cache: Cache | None = None
    state: LayerState | None = None
    lengths: Tensor | None = None
    ids: Tensor | None = None
    losses: PartLosses | None = None
    shared: Shared = field(default=_ALONE)

    def at_layer(self, layer: int) -> "Context":
        """The same for one layer of a pass that reads on from a cache."""
        return self if self.cache is None else replace(self, state=self.cache.layers[layer])

    def numbered(self, time: int, device: torch.device) -> Tensor:
        """The positions as numbers, also where they are 0, 1, 2, ..."""
        return torch.arange(time, device=device) if self.positions is None else self.positions

    def rotate(self, x: Tensor) -> Tensor:
        """Queries or keys ``(batch, n_head, time, head_dim)``, rotated as the position scheme has it."""
        scheme = self.scheme
        if scheme is None or not scheme.rotates:
            return x
        time, width = x.shape[-2:]
        dtype = torch.promote_types(x.dtype, torch.float32)  # bf16 holds no whole number above 256 exactly
        rotation = self.shared.rotations.made(
            (width, time, dtype), lambda: scheme.rotation(width, self.numbered(time, x.device), dtype)
        )
        return scheme.rotate(x, *rotation)
