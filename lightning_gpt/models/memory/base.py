"""Memory from segment to segment: what a model knows of a text beyond the tokens that it attends to at once.

A text is read in *segments* of one length (the last may be shorter). Within one, attention is as always; of what was
before it, each kind of memory hands on something (:mod:`.segment`, :mod:`.tokens`). Rows of a batch may
go on from a :class:`State`, so that the memory outlives the row: training on lanes carries it from step to step to the
document's end.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from lightning_gpt.errors import CallError
from lightning_gpt.models.gpt import GPT
from lightning_gpt.models.kv_cache import Cache, KeyValues
from lightning_gpt.models.layer import Layer
from lightning_gpt.models.part_losses import PartLosses
from lightning_gpt.models.positions.scheme import positions_within
from lightning_gpt.models.registry import Registry

memories: Registry["Memory"] = Registry("memory", "dim", "n_layer", "block_size", optional=True)


@dataclass
class State:
    """What a memory keeps of the rows of a batch; a pass goes on from it and replaces its tensors.

    Args:
        memory: ``(rows, ...)``, as the kind of memory has it.
        ids: ``(rows, kept)``, the tokens that the memory is of, where it is of tokens.
        read: ``(rows,)``, how many tokens of its document each row has read; 0 where a document begins, whatever
            ``memory`` holds there.
    """

    memory: Tensor
    ids: Tensor
    read: Tensor

    def started(self, starts: Tensor) -> "State":
        """The same where rows ``starts`` (booleans) begin a document."""
        return State(self.memory, self.ids, self.read.masked_fill(starts, 0))

    def to(self, device: torch.device) -> "State":
        """The same on a device."""
        return State(*(tensor.to(device) for tensor in (self.memory, self.ids, self.read)))

    def row(self, number: int) -> "State":
        """One row alone."""
        return State(*(tensor[number : number + 1] for tensor in (self.memory, self.ids, self.read)))


class MemoryCache(Cache):
    """What a model with memory keeps of a batch of sequences that it goes on reading.

    Rows of unequal length stand at different places of their segments, so each has a cache of its own.
    """

    def __init__(self, layers: list[KeyValues], capacity: int, takes_back: bool) -> None:
        super().__init__([*layers])
        self.capacity = capacity
        self.rows: list[MemoryCache] = []
        self.memory: Tensor | None = None
        self._takes_back = takes_back

    @property
    def can_truncate(self) -> bool:
        """Whether the last tokens can be forgotten."""
        return self._takes_back and not self.rows


class Memory(Layer, ABC):
    """What all kinds share: cutting a text in segments, and going on from a state, a cache or neither.

    Args:
        block_size: Length of a row in training.
        segment: Length of a segment, which divides it; the whole row when None.
    """

    is_relative = False
    """Whether tokens of one segment look at those of another, so that positions within it mean nothing."""
    needs_every_layer = False
    """Whether a layer that is left out in one pass would be missing in another."""
    segment: int

    def __init__(self, block_size: int, segment: int | None) -> None:
        super().__init__()
        require_whole("segment", segment, optional=True)
        self.segment = segment or block_size
        if block_size % self.segment:
            raise CallError(f"memory segment is {segment}; it must divide block_size, which is {block_size}")
        self._state: State | None = None

    @abstractmethod
    def new_state(self, rows: int, like: Tensor) -> State:
        """The state of ``rows`` rows that begin a document, of the type and on the device of ``like``."""

    @abstractmethod
    def new_cache(self, model: GPT, capacity: int) -> MemoryCache:
        """An empty cache for sequences of up to ``capacity`` tokens."""

    @abstractmethod
    def _read(self, model: GPT, pieces: tuple[Tensor, ...], losses: PartLosses | None) -> list[Tensor]:
        """Hidden states of segments, from the beginning or from the state."""

    @abstractmethod
    def _go_on(self, model: GPT, piece: Tensor, cache: MemoryCache) -> Tensor:
        """Hidden states of tokens of one segment, from what the cache holds."""

    @contextmanager
    def carried(self, state: State) -> Iterator[None]:
        """Inside, a pass over whole segments goes on from ``state`` and leaves there what the next one goes on from.

        No gradient flows back into the state.
        """
        self._state = state
        try:
            yield
        finally:
            self._state = None

    def hidden(
        self,
        model: GPT,
        ids: Tensor,
        documents: Tensor | None,
        cache: Cache | None,
        lengths: Tensor | None,
        losses: PartLosses | None,
    ) -> Tensor:
        """Hidden states ``(batch, time, dim)``; the arguments are those of the model's ``hidden``."""
        if cache is not None:
            assert isinstance(cache, MemoryCache)
            return self._from_cache(model, ids, cache, lengths)
        if documents is not None:
            return _apart(lambda rows: self.hidden(model, rows, None, None, None, losses), ids, documents)
        if self._watch is not None and ids.shape[1] > self.segment:
            raise CallError(
                f"the text has {ids.shape[1]} tokens and a model with memory shows one segment of {self.segment} at a "
                f"time: shorten the text"
            )
        if self._state is not None and ids.shape[1] % self.segment:
            raise CallError(f"memory is carried by whole segments of {self.segment} tokens, not by {ids.shape[1]}")
        pieces = torch.split(ids, self.segment, dim=1)
        # a row of many segments is still one row to the losses of the model's parts
        losses = None if losses is None else losses.scaled(1 / len(pieces))
        return torch.cat(self._read(model, pieces, losses), dim=1)

    def _from_cache(self, model: GPT, ids: Tensor, cache: MemoryCache, lengths: Tensor | None) -> Tensor:
        counts = [ids.shape[1]] * len(ids) if lengths is None else lengths.tolist()
        if len(set(counts)) > 1 and not cache.rows:
            if cache.length:
                raise CallError("rows of a model with memory that were read as one cannot go on by unequal lengths")
            cache.rows = [self.new_cache(model, cache.capacity) for _ in ids]
        if cache.rows:
            cache.length += ids.shape[1]
            rows = zip(ids, counts, cache.rows, strict=True)
            read = [self._from_cache(model, row[None, :count], own, None)[0] for row, count, own in rows]
            return pad_sequence([*read, read[0].new_zeros(ids.shape[1], read[0].shape[-1])], batch_first=True)[:-1]
        hidden = []
        while ids.shape[1]:
            left = self.segment - cache.length % self.segment
            hidden.append(self._go_on(model, ids[:, :left], cache))
            cache.advance(min(left, ids.shape[1]), None)
            ids = ids[:, left:]
        return torch.cat(hidden, dim=1)


class Recalled(KeyValues):
    """Keys and values that come before those of one pass, ``(batch, heads, kept, width)`` at ``places``, or none.

    Nothing is written into them: gradients flow through, and a pass may be run again for its gradient.
    """

    def __init__(self, k: Tensor | None = None, v: Tensor | None = None, places: Tensor | None = None) -> None:
        super().__init__(capacity=0)
        self._before = None if k is None or v is None or places is None else (k, v, places)
        self._with_pass: tuple[Tensor, Tensor, Tensor] | None = None

    def append(
        self, k: Tensor, v: Tensor, positions: Tensor | None, lengths: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Those from before and the pass's own."""
        own = torch.arange(k.shape[-2], device=k.device) if positions is None else positions
        if self._before is None:
            self._with_pass = (k, v, own)
            return k, v, positions
        old_k, old_v, places = self._before
        joined = torch.cat([old_k, k], dim=-2), torch.cat([old_v, v], dim=-2), torch.cat([places, own], dim=-1)
        self._with_pass = joined
        return joined

    def after(self) -> "Recalled":
        """What comes before the next pass."""
        assert self._with_pass is not None
        return Recalled(*self._with_pass)


def _apart(read: Callable[[Tensor], Tensor], ids: Tensor, documents: Tensor) -> Tensor:
    """Hidden states of ``ids`` ``(batch, time)``, each document read as a row of its own."""
    place = positions_within(documents)
    number = (place == 0).flatten().cumsum(dim=0).view_as(ids) - 1
    rows = ids.new_zeros(int(number.max()) + 1, int(place.max()) + 1)
    rows[number, place] = ids
    return read(rows)[number, place]


def require_whole(option: str, value: int | None, optional: bool = False) -> None:
    """Refuse an option of a memory that is no whole number of at least 1."""
    if not (optional and value is None) and (not isinstance(value, int) or value < 1):
        raise CallError(f"memory {option} is {value!r}; it must be a whole number of at least 1")
