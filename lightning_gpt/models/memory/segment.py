"""Attention to the layer inputs of preceding tokens, kept across segments: Transformer-XL."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from lightning_gpt.models.context import Context, Shared
from lightning_gpt.models.gpt import GPT
from lightning_gpt.models.kv_cache import LOOKAHEAD, Cache, KeyValues
from lightning_gpt.models.memory.base import Memory, MemoryCache, Recalled, State, memories
from lightning_gpt.models.part_losses import PartLosses
from lightning_gpt.options import Length


@memories.register("segment")
class SegmentMemory(Memory):
    """Each layer also attends to its inputs for the ``length`` tokens before the segment: Transformer-XL.

    Dai et al. 2019 (1901.02860), section 3.2: ``h̃ = [SG(h_τ) ∘ h_{τ+1}]``, queries from ``h_{τ+1}``, keys and values
    from ``h̃``. The streams of earlier segments are stored, not their keys. Keys and values are recomputed from them
    with the current weights, which receive a gradient through them; SG stops gradients from flowing further back. After
    L layers, information from up to ``L · length`` tokens before its segment can reach a token. Positions must be
    relative (section 3.3): any scheme here that adds nothing to the embeddings. Tokens keep their true distances, and
    attention to fixed positions, such as ``global_window``, sees those tokens as long as the memory holds them.

    Args:
        n_layer: Number of layers.
        stream_width: Width of the stream, all its copies together.
        block_size: Length of a training row.
        length: Number of remembered tokens; the segment length if None.
        segment: Segment length, which must divide ``block_size``; ``block_size`` if None.
    """

    is_relative = True

    def __init__(
        self,
        n_layer: int,
        stream_width: int,
        block_size: int,
        length: Length | None = None,
        segment: Length | None = None,
    ) -> None:
        super().__init__(block_size, segment)
        self.length = length or self.segment
        self.n_layer, self.stream_width = n_layer, stream_width

    def new_state(self, rows: int, like: Tensor) -> State:
        counts: dict[str, Any] = {"dtype": torch.long, "device": like.device}
        return State(
            like.new_zeros(rows, self.n_layer, self.length, self.stream_width),
            torch.zeros(rows, self.length, **counts),
            torch.zeros(rows, **counts),
        )

    def new_cache(self, model: GPT, capacity: int) -> MemoryCache:
        layers: list[KeyValues] = [_SegmentKeys(self, capacity) for _ in model.blocks]
        return MemoryCache(layers, capacity, takes_back=True)

    def _read(self, model: GPT, pieces: tuple[Tensor, ...], losses: PartLosses | None) -> list[Tensor]:
        state, hidden = self._state, []
        # start position: one for all rows from the beginning, or one per row from a state
        begin = torch.zeros((), dtype=torch.long) if state is None else state.read[:, None]
        begin = begin.to(pieces[0].device)
        memory: list[Tensor] = [] if state is None else list(state.memory.unbind(dim=1))
        ids = pieces[0][:, :0] if state is None else state.ids
        for piece in pieces:
            context = Context(scheme=model.positions, ids=piece, losses=losses, shared=Shared())
            if memory:
                context = replace(self._after(model, memory, ids, begin, piece), losses=losses)
            x, given = model.embed(piece, context), []
            for layer in range(self.n_layer):
                given.append(x.detach())
                x = model.layer(layer, x, context)
            hidden.append(model.finish(x, context))
            memory = [torch.cat(both, dim=1) for both in zip(memory, given, strict=True)] if memory else given
            memory = [x[:, -self.length :] for x in memory]
            ids = torch.cat([ids, piece], dim=1)[:, -self.length :]
            begin = begin + piece.shape[1]
        if state is not None:
            state.memory, state.ids, state.read = torch.stack(memory, dim=1), ids, begin[:, 0]
        return hidden

    def _after(self, model: GPT, memory: list[Tensor], ids: Tensor, begin: Tensor, piece: Tensor) -> Context:
        """The context of a segment whose layers remember ``memory``; positions before the document are negative."""
        kept, time = ids.shape[1], piece.shape[1]
        place = torch.arange(-kept, time, device=piece.device) + begin
        before = Context(positions=place[..., :kept], scheme=model.positions, ids=ids, shared=Shared())
        layers: list[KeyValues] = []
        for block, x in zip(model.each_block(), memory, strict=True):
            _, k, v = block.unwrapped.attention.heads(block.unwrapped.attention_input(x, before), before)
            layers.append(Recalled(k, v, place[..., :kept]))
        cache = Cache([*layers])
        return Context(place[..., kept:], None, model.positions, cache, ids=piece, shared=Shared())

    def _go_on(self, model: GPT, piece: Tensor, cache: MemoryCache) -> Tensor:
        positions = cache.positions(piece.shape[1], piece.device)
        context = Context(positions, None, model.positions, cache, ids=piece, shared=Shared())
        return model.run(model.embed(piece, context), context)


class _SegmentKeys(KeyValues):
    """Keys and values of the segment being read and of the remembered tokens."""

    def __init__(self, memory: SegmentMemory, capacity: int) -> None:
        super().__init__(min(capacity, memory.segment + memory.length + LOOKAHEAD))
        self._memory = memory

    def append(
        self, k: Tensor, v: Tensor, positions: Tensor | None, lengths: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """As in the base class, for tokens of one segment; tokens too far before it are marked as empty slots."""
        begin = self.seen - self.seen % self._memory.segment
        k, v, places = super().append(k, v, positions, lengths)
        forgotten = begin - self._memory.length
        if forgotten <= 0:
            return k, v, places
        places = torch.arange(k.shape[-2], device=k.device) if places is None else places
        return k, v, places.masked_fill(places < forgotten, -1)
