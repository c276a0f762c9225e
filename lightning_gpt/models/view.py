"""A model's blocks, as analysis tools see them."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

from lightning_gpt.models.attention.mixer import Mixer
from lightning_gpt.models.layer import Layer


@dataclass(frozen=True)
class BlockView:
    """One block of a model, as analysis tools see it.

    Args:
        layer: The layer it runs as, from 0.
        parts: The modules it consists of.
        mixer: The module that mixes tokens.
        mixer_name: Prefix of the mixer's intermediates: ``blocks.0.attention``.
        ffn: The feed-forward network; None if there is none.
        ffn_name: Prefix of the feed-forward network's intermediates; None if there is none.
        stream_name: Name of the residual stream after the block: ``blocks.0.after_ffn``.
        half_name: Name of the residual stream between the block's halves; None if it has only one.
        input_name: Name of what the mixer reads; None if that is the stream itself.
        mixer_input: Maps a residual stream ``(..., dim)`` before the block to what the mixer reads of it.
        written: Maps an output of the mixer ``(..., dim)`` to what it adds to the stream; to None if that depends on
            the token.
    """

    layer: int
    parts: tuple[nn.Module, ...]
    mixer: Mixer
    mixer_name: str
    ffn: Layer | None
    ffn_name: str | None
    stream_name: str
    half_name: str | None
    input_name: str | None
    mixer_input: Callable[[Tensor], Tensor]
    written: Callable[[Tensor], Tensor | None]
