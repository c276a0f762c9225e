"""What the layers of one forward pass share besides the residual stream."""

from collections.abc import Callable, Hashable, Iterator, Mapping, MutableMapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar, cast

import torch
from torch import Tensor

from lightning_gpt.models.kv_cache import Cache, KeyValues, LayerState, WithInputs
from lightning_gpt.models.part_losses import PartLosses
from lightning_gpt.models.positions.scheme import Positions

T = TypeVar("T")


class Once(MutableMapping[Hashable, T]):
    """Values by key, each computed by the first layer of the pass that needs it.

    No dict, because ``fully_shard`` hands a block a copy of every dict that holds tensors with gradients: later layers
    would not see what the block writes.
    """

    def __init__(self) -> None:
        self._values: dict[Hashable, T] = {}

    def __getitem__(self, key: Hashable) -> T:
        return self._values[key]

    def __setitem__(self, key: Hashable, value: T) -> None:
        self._values[key] = value

    def __delitem__(self, key: Hashable) -> None:
        del self._values[key]

    def __iter__(self) -> Iterator[Hashable]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def made(self, key: Hashable, make: Callable[[], T]) -> T:
        """The value under ``key``; computed by ``make`` if there is none yet."""
        if key not in self._values:
            self._values[key] = make()
        return self._values[key]


class _Never(Once[T]):
    """Caches nothing: each value is computed whenever it is requested."""

    def made(self, key: Hashable, make: Callable[[], T]) -> T:
        return make()


@dataclass(frozen=True)
class Shared:
    """Values that the layers of a pass compute once and share.

    Args:
        masks: Attention masks.
        biases: The position scheme's score biases, masked.
        rotations: Cosines and sines of rotary positions.
        layouts: How a kind of attention divides the sequence into blocks or chunks.
        carried: Values that one layer computes from the residual stream for later layers. A pipeline must transmit
            these; everything else depends only on token positions, so each device can compute its own copy.
    """

    masks: Once[Tensor] = field(default_factory=Once)
    biases: Once[Tensor] = field(default_factory=Once)
    rotations: Once[tuple[Tensor, Tensor]] = field(default_factory=Once)
    layouts: Once[Any] = field(default_factory=Once)
    carried: Once[Tensor] = field(default_factory=Once)

    def initial_stream(self, x: Tensor) -> Tensor:
        """The input ``(batch, time, dim)`` of the first layer that calls this; for that layer, ``x``."""
        return self.carried.made("initial stream", lambda: x)

    def first_values(self, who: Hashable, v: Tensor) -> Tensor:
        """The values of the first layer that calls this under the key ``who``; for that layer, ``v``."""
        return self.carried.made(("first values", who), lambda: v)


_ALONE = Shared(_Never(), _Never(), _Never(), _Never(), _Never())  # for a layer that is run on its own


@dataclass(frozen=True)
class Context:
    """Positions and metadata of the tokens in a pass, and the state they can look back on.

    Args:
        positions: Token positions, ``(time,)`` or ``(batch, time)``; 0 to time − 1 if None.
        documents: Each token's document, ``(batch, time)``, if documents are kept apart.
        scheme: The position scheme.
        cache: The layers' states, if earlier tokens were read before.
        state: The state of the mixer of the layer being run.
        lengths: Number of real tokens per row, ``(batch,)``, if rows are padded at the end.
        ids: The token ids, ``(batch, time)``; None if a layer is run on its own.
        losses: Used by parts to add auxiliary losses; None outside training passes.
        shared: Values the layers share.
        recent: The last inputs of the short convolutions of the layer being run, by their names, if there is a cache.
        is_choice: Whether the tokens are chosen from a row, so that neighbours here may be far apart in it.
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
    recent: Mapping[str, KeyValues] | None = None
    is_choice: bool = False

    def at_layer(self, layer: int) -> "Context":
        """The context for one layer: with that layer's state, if there is a cache."""
        if self.cache is None:
            return self
        state = self.cache.layers[layer]
        if isinstance(state, WithInputs):
            return replace(self, state=state.mixer, recent=cast(Mapping[str, KeyValues], state.inputs))
        return replace(self, state=state)

    @property
    def key_documents(self) -> Tensor | None:
        """Each key's document, ``(batch, columns)``, if documents are kept apart."""
        looked_up = None if self.cache is None else self.cache.documents
        return self.documents if looked_up is None else looked_up

    def of_run(self, run: slice, n_key: int) -> "Context":
        """The context of a run of the pass's tokens, which look at the first ``n_key`` keys only."""
        assert self.positions is not None
        cache = Cache([])
        cache.documents = None if self.key_documents is None else self.key_documents[:, :n_key]
        documents = None if self.documents is None else self.documents[:, run]
        return replace(self, positions=self.positions[..., run], documents=documents, cache=cache)

    def numbered(self, time: int, device: torch.device) -> Tensor:
        """The positions as a tensor, even if they are the default 0, 1, 2, ..."""
        return torch.arange(time, device=device) if self.positions is None else self.positions

    def rotate(self, x: Tensor, own: Positions | None = None) -> Tensor:
        """Queries or keys ``(batch, n_head, time, head_dim)``, rotated if the position scheme rotates.

        The scheme is ``own``, that of the layer, if it has one.
        """
        scheme = self.scheme if own is None else own
        if scheme is None or not scheme.rotates:
            return x
        time, width = x.shape[-2:]
        dtype = torch.promote_types(x.dtype, torch.float32)  # bf16 cannot represent all integers above 256
        rotation = self.shared.rotations.made(
            (None if own is None else own.made_with, width, time, dtype),
            lambda: scheme.rotation(width, self.numbered(time, x.device), dtype),
        )
        return scheme.rotate(x, *rotation)
