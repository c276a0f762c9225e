"""Memory across segments: what a model knows of a text beyond the tokens it attends to at once.

A text is read in *segments* of equal length (the last may be shorter). Within a segment, attention works as usual; each
kind of memory passes on information from earlier segments (:mod:`.segment`, :mod:`.tokens`). Rows of a batch can
continue from a :class:`State`, so that the memory outlives the row: training on lanes carries it from step to step
until the document ends.
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

memories: Registry["Memory"] = Registry("memory", "dim", "stream_width", "n_layer", "block_size", optional=True)


@dataclass
class State:
    """What a memory keeps for the rows of a batch; a pass continues from it and replaces its tensors.

    Args:
        memory: ``(rows, ...)``; the format depends on the kind of memory.
        ids: The remembered tokens, ``(rows, kept)``, if the memory consists of tokens.
        read: How many tokens of its document each row has read, ``(rows,)``; 0 at the start of a document, where
            ``memory`` is then ignored.
    """

    memory: Tensor
    ids: Tensor
    read: Tensor

    def started(self, starts: Tensor) -> "State":
        """The state with the rows marked in ``starts`` (booleans) reset to the beginning of a document."""
        return State(self.memory, self.ids, self.read.masked_fill(starts, 0))

    def to(self, device: torch.device) -> "State":
        """The state on another device."""
        return State(*(tensor.to(device) for tensor in (self.memory, self.ids, self.read)))

    def row(self, number: int) -> "State":
        """The state of one row."""
        return State(*(tensor[number : number + 1] for tensor in (self.memory, self.ids, self.read)))


class MemoryCache(Cache):
    """What a model with memory keeps of a batch of sequences while it reads on.

    Rows of unequal length are at different positions within their segments, so each has its own cache.
    """

    can_select = False

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

    @property
    def can_share(self) -> bool:
        """No: rows of unequal length are in different segments."""
        return False


class Memory(Layer, ABC):
    """Base class of memories: splits a text into segments, and continues from a state, a cache or neither.

    Args:
        block_size: Length of a training row.
        segment: Segment length, which must divide ``block_size``; ``block_size`` if None.
    """

    is_relative = False
    """Whether tokens attend across segments, so that positions within a segment are meaningless."""
    needs_every_layer = False
    """Whether every pass needs every layer, because a later pass uses what each layer computed."""
    segment: int

    def __init__(self, block_size: int, segment: int | None) -> None:
        super().__init__()
        self.segment = segment or block_size
        if block_size % self.segment:
            raise CallError(f"memory segment is {segment}; it must divide block_size, which is {block_size}")
        self._state: State | None = None

    @abstractmethod
    def new_state(self, rows: int, like: Tensor) -> State:
        """The state of ``rows`` rows at the start of a document, with the dtype and device of ``like``."""

    @abstractmethod
    def new_cache(self, model: GPT, capacity: int) -> MemoryCache:
        """An empty cache for sequences of up to ``capacity`` tokens."""

    @abstractmethod
    def _read(self, model: GPT, pieces: tuple[Tensor, ...], losses: PartLosses | None) -> list[Tensor]:
        """Hidden states of segments, from the beginning or from the state."""

    @abstractmethod
    def _go_on(self, model: GPT, piece: Tensor, cache: MemoryCache) -> Tensor:
        """Hidden states of tokens within one segment, continuing from the cache."""

    @contextmanager
    def carried(self, state: State) -> Iterator[None]:
        """While active, a pass over whole segments continues from ``state`` and updates it for the next pass.

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
        """Hidden states ``(batch, time, dim)``; takes the arguments of the model's ``hidden``."""
        if cache is not None:
            assert isinstance(cache, MemoryCache)
            return self._from_cache(model, ids, cache, lengths)
        if documents is not None:
            return _apart(lambda rows: self.hidden(model, rows, None, None, None, losses), ids, documents)
        if self._watch is not None and ids.shape[1] > self.segment:
            raise CallError(
                f"the text has {ids.shape[1]} tokens, but a model with memory can record only one segment of "
                f"{self.segment} tokens at a time: shorten the text"
            )
        if self._state is not None and ids.shape[1] % self.segment:
            raise CallError(
                f"memory is carried in whole segments of {self.segment} tokens; the input has {ids.shape[1]}"
            )
        pieces = torch.split(ids, self.segment, dim=1)
        # auxiliary losses of the parts count a row of many segments as one row
        losses = None if losses is None else losses.scaled(1 / len(pieces))
        return torch.cat(self._read(model, pieces, losses), dim=1)

    def _from_cache(self, model: GPT, ids: Tensor, cache: MemoryCache, lengths: Tensor | None) -> Tensor:
        counts = [ids.shape[1]] * len(ids) if lengths is None else lengths.tolist()
        if len(set(counts)) > 1 and not cache.rows:
            if cache.length:
                raise CallError(
                    "with memory, rows read together with equal lengths cannot continue with unequal lengths"
                )
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
    """Keys and values preceding those of a pass, ``(batch, heads, kept, width)`` at ``places``, or none.

    They are never written to: gradients flow through them, and a pass can be recomputed for its gradient.
    """

    def __init__(self, k: Tensor | None = None, v: Tensor | None = None, places: Tensor | None = None) -> None:
        super().__init__(capacity=0)
        self._before = None if k is None or v is None or places is None else (k, v, places)
        self._with_pass: tuple[Tensor, Tensor, Tensor] | None = None

    def append(
        self, k: Tensor, v: Tensor, positions: Tensor | None, lengths: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """The recalled keys and values followed by the pass's own."""
        own = torch.arange(k.shape[-2], device=k.device) if positions is None else positions
        if self._before is None:
            self._with_pass = (k, v, own)
            return k, v, positions
        old_k, old_v, places = self._before
        joined = torch.cat([old_k, k], dim=-2), torch.cat([old_v, v], dim=-2), torch.cat([places, own], dim=-1)
        self._with_pass = joined
        return joined

    def after(self) -> "Recalled":
        """What precedes the next pass."""
        assert self._with_pass is not None
        return Recalled(*self._with_pass)


def _apart(read: Callable[[Tensor], Tensor], ids: Tensor, documents: Tensor) -> Tensor:
    """Hidden states of ``ids`` ``(batch, time)``, reading each document as a separate row."""
    place = positions_within(documents)
    number = (place == 0).flatten().cumsum(dim=0).view_as(ids) - 1
    rows = ids.new_zeros(int(number.max()) + 1, int(place.max()) + 1)
    rows[number, place] = ids
    return read(rows)[number, place]
