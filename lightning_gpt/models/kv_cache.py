"""What a model keeps of the tokens it has read, so that generation need not reread them.

A :class:`Cache` holds one state per layer; for softmax attention the state is its keys and values (:class:`KeyValues`).
Rows of a batch may have different lengths: each token's position decides what it sees.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor

from lightning_gpt.errors import CallError

LOOKAHEAD = 16
"""Slots beyond an attention's span, so that a few tokens can be removed again (:meth:`Cache.truncate`)."""


class LayerState(Protocol):
    """The state that one layer keeps."""

    can_truncate: bool
    can_be_fixed: bool
    """Whether it can go on in tensors that keep their shape, one token a row at a time."""
    can_share: bool
    """Whether texts can join and leave a batch of it (:class:`~lightning_gpt.models.row_cache.RowCache`)."""
    row_tensors: tuple[str, ...]
    """Names of the tensors ``(batch, ...)`` that are all it keeps, zeros standing for an empty text; none for keys and
    values in slots."""

    def truncate(self, length: int) -> None:
        """Forget positions ``length`` and later."""

    def select(self, rows: Tensor) -> None:
        """Keep these rows, ``(new,)`` indices, in this order."""


class KeyValues:
    """Keys and values of one layer: the first ``pinned`` positions permanently, the rest in a ring buffer.

    Values may have a different width from keys: 0 if the layer computes them from the stored keys.

    Position p is stored in slot p if p < ``pinned``, else in slot ``pinned + (p − pinned) mod (capacity − pinned)``.

    Args:
        capacity: Number of slots; further positions overwrite the oldest ones that are not pinned.
        pinned: Number of initial positions that are never overwritten; less than ``capacity``.
    """

    can_truncate = True
    can_be_fixed = True
    can_share = True
    row_tensors: tuple[str, ...] = ()

    def __init__(self, capacity: int, pinned: int = 0) -> None:
        self.capacity, self.pinned, self.ring = capacity, pinned, capacity - pinned
        self.k: Tensor | None = None
        self.v: Tensor
        self.places: Tensor  # (batch, capacity): the position in each slot, −1 if empty
        self.seen = 0  # the largest length reached by any row

    def append(
        self, k: Tensor, v: Tensor, positions: Tensor | None, lengths: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Store the keys and values ``(batch, ..., time, width)`` of new tokens; returns those the tokens may see.

        Args:
            k: Keys of the new tokens.
            v: Values of the new tokens.
            positions: Their positions, ``(time,)`` if equal in all rows, else ``(batch, time)``; from 0 if None.
            lengths: Number of real tokens per row, if rows are padded at the end.

        Returns:
            Keys, values and their positions ``(columns,)`` or ``(batch, columns)``, −1 for an empty slot; the positions
            are None if they are 0, 1, 2, ... in every row.
        """
        if self.k is None:
            self._allocate(k, v)
        time = k.shape[-2]
        at = torch.arange(time, device=k.device) if positions is None else positions
        if at.ndim == 2:
            self._require_room(at, lengths)
            return self._append_apart(k, v, at)
        start = self.seen
        self.seen = start + time
        if start == 0:
            self._keep(k, v, at, start, lengths)
            return k, v, None
        assert self.k is not None
        if self.seen <= self.capacity:
            self._write(k, v, at, start)
            return self.k[..., : self.seen, :], self.v[..., : self.seen, :], None
        if time == 1:
            self._write(k, v, at, start)
            return self.k, self.v, self.places[0]
        old_k, old_v, old = self.k.clone(), self.v.clone(), self.places[0].clone()
        self._keep(k, v, at, start, None)
        return torch.cat([old_k, k], -2), torch.cat([old_v, v], -2), torch.cat([old, at])

    def _require_room(self, at: Tensor, lengths: Tensor | None) -> None:
        """Refuse padding that would be written over what is still seen.

        Raises:
            CallError: Rows that go on are padded, and longer than what is kept.
        """
        time = at.shape[1]
        if lengths is not None and int(at.max()) >= self.capacity and bool((lengths < time).any()):
            raise CallError(
                f"a layer that keeps {self.capacity} tokens cannot go on with rows of unequal length beyond them: give "
                f"rows of equal length, or read the prompts in one pass"
            )

    def truncate(self, length: int) -> None:
        """Forget positions ``length`` and later."""
        if self.k is not None:
            self.places[self.places >= length] = -1
        self.seen = min(self.seen, length)

    def select(self, rows: Tensor) -> None:
        """Keep these rows, ``(new,)`` indices, in this order."""
        if self.k is not None:
            self.k, self.v, self.places = self.k[rows], self.v[rows], self.places[rows]

    def _allocate(self, k: Tensor, v: Tensor) -> None:
        self.k, self.v = (x.new_zeros(*x.shape[:-2], self.capacity, x.shape[-1]) for x in (k, v))
        self.places = torch.full((len(k), self.capacity), -1, device=k.device)

    def slots(self, at: Tensor) -> Tensor:
        """The slots of positions ``at``."""
        return torch.where(at < self.pinned, at, self.pinned + (at - self.pinned) % self.ring)

    def _write(self, k: Tensor, v: Tensor, at: Tensor, start: int) -> None:
        """Write tokens at consecutive positions ``at`` ``(time,)``, starting at ``start``, each into its own slot."""
        assert self.k is not None
        first = start if start < self.capacity else self.pinned + (start - self.pinned) % self.ring
        if first + len(at) <= self.capacity:  # no wrap-around: a slice is much cheaper than indexing
            where = slice(first, first + len(at))
            self.k[..., where, :], self.v[..., where, :], self.places[:, where] = k, v, at
        else:
            slots = self.slots(at)
            self.k[..., slots, :], self.v[..., slots, :], self.places[:, slots] = k, v, at

    def _keep(self, k: Tensor, v: Tensor, at: Tensor, start: int, lengths: Tensor | None) -> None:
        """Store the pinned tokens and the last tokens that fit; in padded rows, the last real ones."""
        if lengths is None:
            fixed = max(0, self.pinned - start)
            last = max(fixed, len(at) - self.ring)
            self._write(k[..., :fixed, :], v[..., :fixed, :], at[:fixed], start)
            self._write(k[..., last:, :], v[..., last:, :], at[last:], start + last)
            return
        assert self.k is not None
        for row, length in enumerate(lengths.tolist()):
            place = torch.arange(length, device=k.device)
            kept = place[(place < self.pinned) | (place >= length - self.ring)]
            slots = self.slots(kept)
            self.k[row][..., slots, :], self.v[row][..., slots, :] = k[row][..., kept, :], v[row][..., kept, :]
            self.places[row, slots] = at[kept]

    def scatter(self, k: Tensor, v: Tensor, slots: Tensor) -> None:
        """Write keys and values of new tokens into ``slots`` ``(batch, time)``, all different within a row."""
        assert self.k is not None
        index = slots.view(len(slots), *[1] * (k.ndim - 3), -1, 1)
        for kept, new in ((self.k, k), (self.v, v)):
            kept.scatter_(-2, index.expand_as(new), new)

    def _append_apart(self, k: Tensor, v: Tensor, at: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Append to rows that have different positions, ``(batch, time)``."""
        assert self.k is not None
        self.seen = max(self.seen, int(at.max()) + 1)
        crowded = at.shape[1] > LOOKAHEAD and self.seen > self.capacity  # could overwrite what is seen
        old_k, old_v, old = (self.k.clone(), self.v.clone(), self.places.clone()) if crowded else (k, v, at)
        for piece in torch.split(torch.arange(at.shape[1], device=at.device), self.ring):  # distinct slots
            slots = self.slots(at[:, piece])
            self.scatter(k[..., piece, :], v[..., piece, :], slots)
            self.places.scatter_(1, slots, at[:, piece])
        if crowded:
            return torch.cat([old_k, k], -2), torch.cat([old_v, v], -2), torch.cat([old, at], -1)
        used = min(self.seen, self.capacity)
        return self.k[..., :used, :], self.v[..., :used, :], self.places[:, :used]


class WithInputs:
    """The state of a layer with short convolutions: that of its mixer, and the last inputs of each convolution.

    Args:
        mixer: The mixer's state.
        inputs: By the convolution's name: its inputs, as keys without values.
    """

    row_tensors: tuple[str, ...] = ()

    def __init__(self, mixer: LayerState, inputs: Mapping[str, LayerState]) -> None:
        self.mixer, self.inputs = mixer, inputs
        self.can_truncate = all(each.can_truncate for each in self._each())
        self.can_be_fixed = all(each.can_be_fixed for each in self._each())
        self.can_share = all(each.can_share for each in self._each())

    def _each(self) -> Sequence[LayerState]:
        return self.mixer, *self.inputs.values()

    def changed(self, change: Callable[[LayerState], LayerState]) -> "WithInputs":
        """What ``change`` makes of each of its states."""
        return WithInputs(change(self.mixer), {name: change(each) for name, each in self.inputs.items()})

    def truncate(self, length: int) -> None:
        """Forget positions ``length`` and later."""
        for each in self._each():
            each.truncate(length)

    def select(self, rows: Tensor) -> None:
        """Keep these rows, ``(new,)`` indices, in this order."""
        for each in self._each():
            each.select(rows)


class Cache:
    """What a model keeps of a batch of sequences.

    Args:
        layers: One state per executed layer.
    """

    documents: Tensor | None = None
    """Each stored key's document, ``(batch, columns)``; None if documents are not kept apart, or are the pass's own."""
    runs: Sequence[tuple[slice, int]] = ()
    """Runs of the pass's tokens, each with a number n: its tokens see nothing beyond the first n keys. If empty, all
    tokens are processed together."""

    can_select = True
    """Whether :meth:`select` works."""

    def __init__(self, layers: list[LayerState]) -> None:
        self.layers = layers
        self.length = 0
        self.lengths: Tensor | None = None  # (batch,) if rows have different lengths

    def positions(self, time: int, device: torch.device) -> Tensor | None:
        """Positions of the next ``time`` tokens: None at the start, else ``(time,)`` or ``(batch, time)``."""
        if self.lengths is not None:
            return self.lengths[:, None] + torch.arange(time, device=device)
        return torch.arange(self.length, self.length + time, device=device) if self.length else None

    def advance(self, time: int, lengths: Tensor | None) -> None:
        """Count ``time`` more tokens as read, or ``lengths`` tokens of each row."""
        if lengths is not None and bool((lengths == time).all()):
            lengths = None
        if lengths is not None or self.lengths is not None:
            read = torch.as_tensor(time) if lengths is None else lengths
            self.lengths = read + (self.length if self.lengths is None else self.lengths)
        self.length += time

    @property
    def can_truncate(self) -> bool:
        """Whether every layer's state can forget its last tokens."""
        return all(layer.can_truncate for layer in self.layers)

    @property
    def can_share(self) -> bool:
        """Whether every layer's state can be divided by rows, so that texts can join and leave."""
        return all(layer.can_share for layer in self.layers)

    def truncate(self, length: int) -> None:
        """Forget positions ``length`` and later in every row; at most :data:`LOOKAHEAD` tokens can be forgotten."""
        self.length = length
        self.lengths = None if self.lengths is None else self.lengths.clamp(max=length)
        for layer in self.layers:
            layer.truncate(length)

    def select(self, rows: Tensor) -> None:
        """Keep these rows, ``(new,)`` indices, in this order; a row may be taken several times or not at all."""
        if self.lengths is not None:
            self.lengths = self.lengths[rows]
        for layer in self.layers:
            layer.select(rows)
