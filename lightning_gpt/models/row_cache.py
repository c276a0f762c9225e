"""A cache for texts that join and leave a batch at any token, in memory that is allocated once.

Each row has a text of its own length. The rows in use are the first ones; the last one replaces a row that leaves, so a
pass always reads a contiguous range and copies nothing.
"""

import torch
from torch import Tensor

from lightning_gpt.models.kv_cache import Cache, KeyValues, LayerState, WithInputs


class _Places:
    """Which position each slot of each row holds, for all layers with equally many slots.

    In a pass over several rows it is worked out once. In a pass over one row each layer works it out from what was
    there before the pass: what an earlier layer has made of it says nothing of the keys that this one still holds.

    Args:
        of: What one of these layers keeps of a text.
        rows: Number of rows.
        device: Where they are.
    """

    def __init__(self, of: KeyValues, rows: int, device: torch.device) -> None:
        self._of = of
        self.held = torch.full((rows, of.capacity), -1, device=device)
        self._now: Tensor | None = None
        self._before: Tensor | None = None

    def take(self, positions: Tensor, rows: slice) -> Tensor:
        """The slots of new tokens at ``positions`` ``(rows, 1)``, which then hold these positions."""
        if self._now is None:
            self._now = self._of.slots(positions)
            self.held[rows].scatter_(1, self._now, positions)
        return self._now

    def before(self, row: slice) -> Tensor:
        """What the slots of a pass's only row held before it, ``(1, slots)``, for each layer to change by itself."""
        if self._before is None:
            self._before = self.held[row].clone()
        return self._before.clone()

    def end(self) -> None:
        """The pass is over."""
        self._now = self._before = None


class _RowKeyValues(KeyValues):
    """Keys and values of one layer: those of the rows that the pass reads.

    Args:
        of: What the layer keeps of a text.
        cache: Which rows are read, and how long their texts are.
    """

    places: Tensor

    def __init__(self, of: KeyValues, cache: "RowCache") -> None:
        super().__init__(of.capacity, of.pinned)
        self._cache = cache

    def append(
        self, k: Tensor, v: Tensor, positions: Tensor | None, lengths: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Store new tokens: any number in one row, or one in each of several, at ``positions`` ``(rows, 1)``."""
        rows = self._cache.rows
        if self.k is None:
            shape = self._cache.n_row, *k.shape[1:-2], self.capacity
            self.k, self.v = k.new_zeros(*shape, k.shape[-1]), v.new_zeros(*shape, v.shape[-1])
        places = self._cache.places(self, k.device)
        if len(k) == 1:  # as if it were alone: a view of its row
            one = KeyValues(self.capacity, self.pinned)
            one.k, one.v, one.places, one.seen = self.k[rows], self.v[rows], places.before(rows), self._cache.length
            seen = one.append(k, v, positions, None)
            places.held[rows] = one.places
            return seen
        assert positions is not None
        part = KeyValues(self.capacity, self.pinned)
        part.k, part.v = self.k[rows], self.v[rows]
        part.scatter(k, v, places.take(positions, rows))
        used = min(self._cache.length + 1, self.capacity)
        return part.k[..., :used, :], part.v[..., :used, :], places.held[rows, :used]

    def move(self, source: int, target: int, length: int) -> None:
        """Copy a text of ``length`` tokens from one row to another."""
        if self.k is not None:
            used = min(length, self.capacity)
            for kept in (self.k, self.v):
                kept[target, ..., :used, :] = kept[source, ..., :used, :]


class _RowTensors:
    """State of one layer that consists of a few tensors, each ``(rows, ...)``, which a pass replaces.

    Args:
        of: The layer's state; the layer is given this object, holding the rows that the pass reads.
    """

    def __init__(self, of: LayerState) -> None:
        self.of = of
        self._kept: dict[str, Tensor] = {}

    def load(self, rows: slice) -> None:
        """Before a pass: hand out the rows that it reads."""
        for name, kept in self._kept.items():
            setattr(self.of, name, kept[rows])

    def store(self, rows: slice, n_row: int) -> None:
        """After a pass: take back what it has made of them."""
        for name in self.of.row_tensors:
            new = getattr(self.of, name, None)
            if new is not None:
                if name not in self._kept:
                    self._kept[name] = new.new_zeros(n_row, *new.shape[1:])
                self._kept[name][rows] = new

    def move(self, source: int, target: int) -> None:
        """Copy the state of a text from one row to another."""
        for kept in self._kept.values():
            kept[target] = kept[source]

    def forget(self, row: int) -> None:
        """Reset a row: a state of zeros is that of an empty text."""
        for kept in self._kept.values():
            kept[row] = 0

    def tensors(self) -> list[Tensor]:
        """What is kept."""
        return list(self._kept.values())


class RowCache(Cache):
    """What a model keeps of each of ``n_row`` texts.

    Args:
        of: An empty cache for one text; its layers must be able to :attr:`~.kv_cache.LayerState.can_share`.
        n_row: Number of rows.
    """

    can_select = False
    rows = slice(0, 0)
    """The rows that the current pass reads."""

    def __init__(self, of: Cache, n_row: int) -> None:
        self.n_row = n_row
        self.counts = [0] * n_row
        """Number of tokens read in each row."""
        self._places: dict[tuple[int, int], _Places] = {}
        self._keys: list[_RowKeyValues] = []
        self._tensors: list[_RowTensors] = []
        super().__init__([self._shared(layer) for layer in of.layers])

    def _shared(self, layer: LayerState) -> LayerState:
        if isinstance(layer, WithInputs):
            return layer.changed(self._shared)
        if layer.row_tensors:
            self._tensors.append(_RowTensors(layer))
            return layer
        assert isinstance(layer, KeyValues)
        self._keys.append(_RowKeyValues(layer, self))
        return self._keys[-1]

    def places(self, of: KeyValues, device: torch.device) -> _Places:
        """What the slots of layers like this one hold."""
        alike = of.capacity, of.pinned
        if alike not in self._places:
            self._places[alike] = _Places(of, self.n_row, device)
        return self._places[alike]

    def open(self, first: int, last: int) -> None:
        """The next pass reads rows ``first`` to ``last − 1``: any number of tokens of one row, or one of each."""
        self.rows = slice(first, last)
        self.length = max(self.counts[self.rows])
        for state in self._tensors:
            state.load(self.rows)

    def positions(self, time: int, device: torch.device) -> Tensor | None:
        """Positions of the next tokens: as for a single text, or ``(rows, 1)``."""
        counts = self.counts[self.rows]
        if len(counts) == 1:
            return super().positions(time, device)
        return torch.tensor(counts, device=device)[:, None]

    def advance(self, time: int, lengths: Tensor | None) -> None:
        """Count ``time`` more tokens as read in each of the pass's rows."""
        for row in range(self.rows.start, self.rows.stop):
            self.counts[row] += time
        for places in self._places.values():
            places.end()
        for state in self._tensors:
            state.store(self.rows, self.n_row)

    def move(self, source: int, target: int) -> None:
        """Copy the text of one row into another."""
        for keys in self._keys:
            keys.move(source, target, self.counts[source])
        for state in self._tensors:
            state.move(source, target)
        for places in self._places.values():
            places.held[target] = places.held[source]
        self.counts[target] = self.counts[source]

    def forget(self, row: int) -> None:
        """Begin a new text in a row."""
        self.counts[row] = 0
        for places in self._places.values():
            places.end()  # a pass that failed may not have ended
            places.held[row] = -1
        for state in self._tensors:
            state.forget(row)

    @property
    def n_bytes(self) -> int:
        """Memory allocated, in bytes; all of it from the first pass on."""
        keys = [tensor for state in self._keys if state.k is not None for tensor in (state.k, state.v)]
        tensors = [tensor for state in self._tensors for tensor in state.tensors()]
        return sum(tensor.nbytes for tensor in (*keys, *tensors, *(places.held for places in self._places.values())))
