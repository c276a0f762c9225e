"""A model's blocks, as instruments ask for them."""

from dataclasses import dataclass

from torch import nn

from lightning_gpt.models.attention.mixer import Mixer
from lightning_gpt.models.layer import Layer


@dataclass(frozen=True)
class BlockView:
    """One block of a model, as instruments ask for it.

    Args:
        parts: The modules that it is made of.
        mixer: The one that mixes tokens.
        mixer_name: What that one's intermediates are named by: ``blocks.0.attention``.
        ffn: The feed-forward network; None where there is none.
        ffn_name: What the feed-forward network's intermediates are named by; None where there is none.
        stream_name: The residual stream after the block: ``blocks.0.after_ffn``.
    """

    parts: tuple[nn.Module, ...]
    mixer: Mixer
    mixer_name: str
    ffn: Layer | None
    ffn_name: str | None
    stream_name: str
