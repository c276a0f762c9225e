"""A GPT with memory: it reads a text in segments and carries information from one to the next."""

from dataclasses import dataclass

from torch import Tensor

from lightning_gpt.errors import CallError
from lightning_gpt.models.attention.mixer import attentions
from lightning_gpt.models.base import models
from lightning_gpt.models.config import GPTConfig
from lightning_gpt.models.gpt import GPT
from lightning_gpt.models.kv_cache import Cache
from lightning_gpt.models.memory.base import memories
from lightning_gpt.models.part_losses import PartLosses
from lightning_gpt.models.positions.scheme import position_schemes
from lightning_gpt.models.registry import Choice, Given, as_read


@dataclass(frozen=True, kw_only=True)
class MemoryGPTConfig(GPTConfig):
    """The sizes and choices of a :class:`MemoryGPT`: those of a GPT, plus its memory.

    Args:
        memory: What is carried across the segments of a text, for example ``{kind: segment, length: 128}``.
    """

    memory: Given

    def __post_init__(self) -> None:
        super().__post_init__()
        memory = memories.require(self.memory)
        self._read("memory", memory)
        kind, position = memories.get(memory.kind), self.position
        assert isinstance(position, Choice)
        if kind.is_relative and position_schemes.get(position.kind).is_absolute:
            fitting = [name for name in position_schemes.names if not position_schemes.get(name).is_absolute]
            raise CallError(
                f"memory {memory.kind!r} attends across segments, but position {position.kind!r} only encodes "
                f"positions within a segment; use position {', '.join(fitting)}"
            )
        if kind.needs_every_layer and self.layer_drop is not None:
            raise CallError(
                f"memory {memory.kind!r} needs every layer in every step, but layer_drop skips some; "
                f"use layer_drop none"
            )
        if self.loop is not None:
            raise CallError("memory and loop cannot be combined: leave one of them out")
        if self.token_routing is not None:
            raise CallError(
                "memory needs every token in every layer, but token_routing skips some; use token_routing none"
            )
        if self.convolution is not None:
            raise CallError(
                "memory keeps keys and values of single tokens, and convolution mixes each with those before it; "
                "use convolution none"
            )
        for choice in map(attentions.require, as_read(self.attention)):
            if not attentions.get(choice.kind).keeps_keys:
                raise CallError(
                    f"memory needs attention that keeps keys and values, which {choice.kind!r} does not; "
                    f"use attention full or another softmax attention, or memory none"
                )


def gpt_with(memory: Given, config: GPTConfig) -> GPT:
    """A GPT with fresh weights: a :class:`MemoryGPT`, or a plain GPT if ``memory`` is ``none`` or None."""
    if memories.read(memory) is None:
        return GPT(config)
    return MemoryGPT(MemoryGPTConfig(memory=memory, **vars(config)))


@models.register("memory_gpt", MemoryGPTConfig)
class MemoryGPT(GPT):
    """A GPT whose memory reads each text segment by segment; see :class:`~lightning_gpt.models.memory.base.Memory`."""

    config: MemoryGPTConfig
    sees_rows = True
    same_each_step = False

    def _add_parts(self) -> None:
        c = self.config
        self.memory = memories.make(
            c.memory,
            dim=c.dim,
            stream_width=c.dim * self.each_block()[0].unwrapped.n_stream,
            n_layer=c.n_layer,
            block_size=c.block_size,
        )

    @property
    def context_limit(self) -> int | None:
        """None: texts can have any length, because positions are relative to a segment."""
        return None

    @property
    def knows_length(self) -> bool:
        """True: the segments divide a row."""
        return True

    @property
    def trace_limit(self) -> int | None:
        """The segment length, in tokens."""
        return self.memory.segment

    def new_cache(self, capacity: int) -> Cache:
        """An empty cache for sequences of up to ``capacity`` tokens."""
        return self.memory.new_cache(self, capacity)

    def hidden(
        self,
        ids: Tensor,
        documents: Tensor | None = None,
        cache: Cache | None = None,
        lengths: Tensor | None = None,
        losses: PartLosses | None = None,
    ) -> Tensor:
        """Map token ids ``(batch, time)`` to the final norm's output ``(batch, time, dim)``."""
        self.require_ids(ids, cache)
        return self.memory.hidden(self, ids, documents, cache, lengths, losses)
