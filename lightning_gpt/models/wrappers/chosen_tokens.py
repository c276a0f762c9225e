"""Running a block on a subset of each row's tokens: their positions, cache and recorded intermediates."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_gpt.models.context import Context, Shared
from lightning_gpt.models.kv_cache import KeyValues
from lightning_gpt.models.layer import Layer
from lightning_gpt.models.record import Watch

_MATRICES = ("mask", "pattern", "scores", "second_scores")
"""Attention intermediates with one row and one column per token."""


@dataclass(frozen=True)
class Chosen:
    """A subset of each row's tokens, in order.

    Rows with fewer chosen tokens are padded with unchosen tokens of the same row; the results of those are discarded,
    and no chosen token sees them.

    Args:
        index: Distinct indices into the row, ``(batch, n)``.
        lengths: Number of chosen tokens in each row, ``(batch,)``; these come first. All if None.
    """

    index: Tensor
    lengths: Tensor | None = None

    @property
    def real(self) -> Tensor:
        """Which entries are chosen tokens rather than padding: booleans ``(batch, n)``."""
        if self.lengths is None:
            return torch.ones_like(self.index, dtype=torch.bool)
        return torch.arange(self.index.shape[1], device=self.index.device) < self.lengths[:, None]

    def take(self, x: Tensor) -> Tensor:
        """Gather their part of the stream: ``(batch, time, dim)`` to ``(batch, n, dim)``."""
        return x.flatten(0, 1).index_select(0, self._rows(x)).view(*self.index.shape, -1)

    def add(self, x: Tensor, added: Tensor) -> Tensor:
        """The stream ``(batch, time, dim)`` with ``added`` ``(batch, n, dim)`` added at their positions."""
        if self.lengths is not None:
            added = added * self.real[..., None]
        return x.flatten(0, 1).index_add(0, self._rows(x), added.flatten(0, 1).to(x.dtype)).view_as(x)

    def _rows(self, x: Tensor) -> Tensor:
        """Their indices into the batch flattened over rows and time."""
        first = x.shape[1] * torch.arange(len(x), device=x.device)
        return (first[:, None] + self.index).flatten()

    def context(self, whole: Context, time: int) -> Context:
        """Their context: tokens keep their positions in the row of ``time`` tokens, so distances are those of the text.

        Padding is positioned after all tokens. ``shared`` is empty, because other layers' masks cover other tokens.
        """
        device = self.index.device
        positions = whole.numbered(time, device).expand(len(self.index), -1).gather(1, self.index)
        if self.lengths is not None:
            after = positions.max() + 1 + torch.arange(positions.shape[1], device=device)
            positions = torch.where(self.real, positions, after)
        documents, ids = (None if x is None else x.gather(1, self.index) for x in (whole.documents, whole.ids))
        return replace(
            whole,
            positions=positions,
            documents=documents,
            ids=ids,
            lengths=self.lengths,
            shared=Shared(),
            is_choice=True,
        )

    def put(self, part: Tensor, into: Tensor, dim: int) -> Tensor:
        """``into`` (time in ``dim``) with the chosen tokens' values replaced by ``part`` (n in ``dim``)."""
        index, real = self._along(self.index, part, dim), self._along(self.real, part, dim)
        return into.scatter(dim, index, torch.where(real, part, into.gather(dim, index)))

    def get(self, whole: Tensor, like: Tensor, dim: int) -> Tensor:
        """The chosen tokens' values of ``whole``, which has time in ``dim``, in the shape of ``like``."""
        return whole.gather(dim, self._along(self.index, like, dim))

    @staticmethod
    def _along(numbers: Tensor, x: Tensor, dim: int) -> Tensor:
        """``(batch, n)`` broadcast to the shape of ``x``, which has n in ``dim``."""
        shape = [1] * x.ndim
        shape[0], shape[dim] = numbers.shape
        return numbers.view(shape).expand_as(x)


class ChosenKeyValues(KeyValues):
    """Keys and values of the tokens that went through a block, stored contiguously in reading order.

    Memory is used only for those tokens. If the layer's attention has a limited span, entries that no later token can
    see are dropped from time to time.

    Args:
        of_all: The state the layer would keep if all tokens went through it.
    """

    can_share = False  # rows keep different numbers of tokens

    def __init__(self, of_all: KeyValues) -> None:
        super().__init__(of_all.capacity, of_all.pinned)
        self.counts: Tensor  # (batch,): number of tokens kept per row

    def append(
        self, k: Tensor, v: Tensor, positions: Tensor | None, lengths: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Store the keys and values of the chosen tokens, ``lengths`` per row; returns all that these may see."""
        assert positions is not None
        assert lengths is not None
        at = positions
        if self.k is None:
            self._allocate(k[..., :0, :], v[..., :0, :])
            self.counts = torch.zeros_like(lengths)
        assert self.k is not None
        most = int(self.counts.max())
        if most > 2 * self.capacity:
            most = self._drop_unseen()
        slots = self.counts[:, None] + torch.arange(at.shape[1], device=at.device)
        end = most + at.shape[1]
        self._grow_to(end)
        for kept, new in ((self.k, k), (self.v, v)):
            kept.scatter_(-2, slots[:, None, :, None].expand_as(new), new)
        seen = self.places.scatter(1, slots, at)  # padding sees itself, so that no row is empty
        real = torch.arange(at.shape[1], device=at.device) < lengths[:, None]
        self.places.scatter_(1, slots, torch.where(real, at, -1))
        self.counts = self.counts + lengths
        return self.k[..., :end, :], self.v[..., :end, :], seen[:, :end]

    def truncate(self, length: int) -> None:
        """Forget positions ``length`` and later."""
        if self.k is not None:
            self.places[self.places >= length] = -1
            self.counts = (self.places >= 0).sum(dim=1)  # positions increase along the slots

    def select(self, rows: Tensor) -> None:
        """Keep these rows, ``(new,)`` indices, in this order."""
        super().select(rows)
        if self.k is not None:
            self.counts = self.counts[rows]

    def _allocate(self, k: Tensor, v: Tensor) -> None:
        self.k, self.v = k, v
        self.places = torch.full((len(k), 0), -1, device=k.device)

    def _grow_to(self, size: int) -> None:
        assert self.k is not None
        if size <= self.places.shape[1]:
            return
        more = max(size, 2 * self.places.shape[1]) - self.places.shape[1]
        self.k, self.v = (F.pad(x, (0, 0, 0, more)) for x in (self.k, self.v))
        self.places = F.pad(self.places, (0, more), value=-1)

    def _drop_unseen(self) -> int:
        """Keep the last tokens of each row and those at pinned positions; returns the largest remaining count."""
        assert self.k is not None
        order = torch.arange(self.places.shape[1], device=self.places.device)
        last = order >= self.counts[:, None] - self.ring
        kept = (self.places >= 0) & (last | (self.places < self.pinned))
        self.counts = kept.sum(dim=1)
        most = int(self.counts.max())
        slots = (~kept).to(torch.uint8).argsort(dim=1, stable=True)[:, :most]
        self.places = torch.where(kept, self.places, -1).gather(1, slots)
        index = slots[:, None, :, None]
        self.k, self.v = (x.gather(-2, index.expand(*x.shape[:-2], -1, x.shape[-1])) for x in (self.k, self.v))
        return most


class _WholeRows(Watch):
    """Wraps another watch of a block that processes chosen tokens, and shows it whole rows.

    Values of unchosen tokens are 0, except in the stream after each half of the block, where they are the stream
    itself.
    """

    def __init__(self, watch: Watch, chosen: Chosen, stream: Tensor, alone: bool) -> None:
        self.__dict__.update(vars(watch))  # both watches share what is requested and found
        self._show, self._chosen, self._stream, self._alone = watch, chosen, stream, alone

    def __call__(self, name: str, value: Tensor) -> Tensor:
        part = name.split(".")[2:]
        if part == ["after_ffn"]:  # the model itself shows the whole stream after the block
            return value
        if value.ndim < 3 or value.shape[-2] != self._chosen.index.shape[1]:
            return self._show(name, value)
        if len(value) != len(self._stream):
            value = value.expand(len(self._stream), *value.shape[1:])
        dims = [-2, -1] if self._alone and part[0] == "attention" and part[-1] in _MATRICES else [-2]
        parts = [value]
        for dim in dims:
            into = self._stream if part == ["after_attention"] else _zeros(parts[-1], dim, self._stream.shape[1])
            parts.append(self._chosen.put(parts[-1], into, dim))
        shown = self._show(name, parts.pop())
        for dim in reversed(dims):
            shown = self._chosen.get(shown, parts.pop(), dim)
        return shown


def _zeros(like: Tensor, dim: int, size: int) -> Tensor:
    shape = list(like.shape)
    shape[dim] = size
    return like.new_zeros(shape)


@contextmanager
def shown_whole(block: nn.Module, chosen: Chosen, stream: Tensor, alone: bool) -> Iterator[None]:
    """While active, a recording of the block sees rows of all tokens, although only the chosen ones are processed.

    Args:
        block: The block that processes them.
        chosen: The tokens.
        stream: The residual stream before the block, ``(batch, time, dim)``.
        alone: Whether the chosen tokens see only each other, and no cached tokens.
    """
    parts = [part for part in block.modules() if isinstance(part, Layer) and part._watch is not None]
    watches = [part._watch for part in parts]
    try:
        for part in parts:
            assert part._watch is not None
            part._watch = _WholeRows(part._watch, chosen, stream, alone)
        yield
    finally:
        for part, watch in zip(parts, watches, strict=True):
            part._watch = watch
