"""Memory vectors carried from one segment to the next: the recurrent memory transformer."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from lightning_gpt.models.context import Context, Shared
from lightning_gpt.models.gpt import GPT
from lightning_gpt.models.kv_cache import Cache, KeyValues, LayerState
from lightning_gpt.models.layer import Matrix
from lightning_gpt.models.memory.base import Memory, MemoryCache, Recalled, State, memories
from lightning_gpt.models.part_losses import PartLosses
from lightning_gpt.options import Length


@memories.register("tokens")
class MemoryTokens(Memory):
    """``n_memory`` vectors, read before a segment and written after it by the same layers: RMT.

    Bulatov et al. 2022 (2207.06881), section 3.2: ``[H_mem ∘ H_τ ∘ H_mem]`` goes through the causal layers. The tokens
    see the first group, which is read; the last group, which is written, sees everything. Its output after the final
    norm is the next segment's ``H_mem``; the first segment's is learned. Within a training row of several segments,
    gradients flow through the memory end to end; they stop at the start of the row. Positions are counted within a
    segment, so every scheme works; memory tokens are placed before and after the segment's tokens, and no position is
    added to them.

    Args:
        dim: Width of a vector, that of the embeddings.
        block_size: Length of a training row.
        n_memory: Number of memory tokens.
        segment: Segment length, which must divide ``block_size``; ``block_size`` if None, in which case writing is
            never trained, because no loss depends on it.
    """

    needs_every_layer = True

    def __init__(self, dim: int, block_size: int, n_memory: Length, segment: Length | None = None) -> None:
        super().__init__(block_size, segment)
        self.initial = nn.Parameter(torch.empty(n_memory, dim))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """N(0, 0.02²)."""
        with torch.no_grad():
            self.initial.normal_().mul_(0.02)

    def matrices(self) -> Iterator[Matrix]:
        yield Matrix(self.initial, "position", "stream")

    @property
    def n_memory(self) -> int:
        """Number of memory tokens."""
        return len(self.initial)

    def new_state(self, rows: int, like: Tensor) -> State:
        counts: dict[str, Any] = {"dtype": torch.long, "device": like.device}
        return State(
            like.new_zeros(rows, *self.initial.shape), torch.zeros(rows, 0, **counts), torch.zeros(rows, **counts)
        )

    def new_cache(self, model: GPT, capacity: int) -> MemoryCache:
        return MemoryCache([], capacity, takes_back=False)

    def _read(self, model: GPT, pieces: tuple[Tensor, ...], losses: PartLosses | None) -> list[Tensor]:
        state, hidden = self._state, []
        memory = self.initial.expand(len(pieces[0]), -1, -1)
        if state is not None:
            memory = torch.where((state.read == 0)[:, None, None], memory, state.memory.to(memory.dtype))
        for number, piece in enumerate(pieces):
            layers = [Recalled() for _ in model.blocks]
            self._through(model, memory, layers, 0)
            layers = [layer.after() for layer in layers]
            hidden.append(self._tokens(model, piece, Cache([*layers]), 0, losses))
            is_last = number + 1 == len(pieces)
            if is_last and state is None:
                break
            # the memory passed to the next row does not affect this row's loss
            with torch.set_grad_enabled(torch.is_grad_enabled() and not is_last):
                layers = [layer.after() for layer in layers]
                memory = self._through(model, memory, layers, self.n_memory + piece.shape[1])
        if state is not None:
            state.memory, state.read = memory.detach(), state.read + sum(piece.shape[1] for piece in pieces)
        return hidden

    def _go_on(self, model: GPT, piece: Tensor, cache: MemoryCache) -> Tensor:
        within = cache.length % self.segment
        if within == 0:
            if cache.memory is None:
                cache.memory = self.initial.expand(len(piece), -1, -1)
            else:
                cache.memory = self._through(model, cache.memory, cache.layers, self.n_memory + self.segment)
            cache.layers = [KeyValues(2 * self.n_memory + self.segment) for _ in model.blocks]
            self._through(model, cache.memory, cache.layers, 0)
        return self._tokens(model, piece, cache, within, None)

    def _tokens(self, model: GPT, piece: Tensor, cache: Cache, within: int, losses: PartLosses | None) -> Tensor:
        """Hidden states of tokens at positions ``within`` and later in their segment."""
        place = torch.arange(within, within + piece.shape[1], device=piece.device)
        x = model.embed(piece, Context(positions=place, scheme=model.positions))
        context = Context(positions=self.n_memory + place, scheme=model.positions, cache=cache, ids=piece)
        return model.run(x, replace(context, losses=losses, shared=Shared()))

    def _through(self, model: GPT, memory: Tensor, layers: Sequence[LayerState], begin: int) -> Tensor:
        """Run memory tokens at positions ``begin`` and later through all layers."""
        at = torch.arange(begin, begin + self.n_memory, device=memory.device) if begin else None
        context = Context(positions=at, scheme=model.positions, cache=Cache([*layers]), shared=Shared())
        return model.run(model.widened(memory), context)
