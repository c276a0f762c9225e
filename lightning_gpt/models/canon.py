"""Canon layers: short convolutions at several places of a block."""

from collections.abc import Callable
from typing import Annotated

from lightning_gpt.errors import CallError
from lightning_gpt.models.block import Block
from lightning_gpt.models.layer import Layer
from lightning_gpt.models.registry import Registry
from lightning_gpt.models.short_convolution import ShortConvolution
from lightning_gpt.options import Range, shown

convolutions: Registry["CanonLayers"] = Registry("convolution", "dim", "layer", optional=True)
"""Convolutions over neighbouring tokens, inside the blocks."""


@convolutions.register("canon")
class CanonLayers:
    """``h_t ← h_t + Σ_l w_l ⊙ h_{t−l}``, l from 0 to 3, at up to four places of a block.

    Allen-Zhu 2025, "Physics of Language Models: Part 4.1" (2512.17351), section 4, eq. 4.1: with the residual, without
    activation and bias, and with torch's usual initial weights. A token gets what its neighbours know at the cost of a
    few vectors per layer. The places are

    - A: the attention's input, after its norm;
    - B: queries, keys and values, before their norm and positions;
    - C: the feed-forward network's input, after its norm;
    - D: what its activation takes.

    Args:
        dim: Width of the residual stream.
        layer: The layer's index, from 0.
        places: Which of them, for example ``AC``.
        width: Number of tokens that each convolution covers, the current one included.
    """

    def __init__(self, dim: int, layer: int, places: str = "ABCD", width: Annotated[int, Range(2, 16)] = 4) -> None:
        if not places or set(places) - set("ABCD") or len(set(places)) < len(places):
            raise CallError(f"convolution places is {shown(places)}; it must be different letters of ABCD, such as AC")
        self.dim, self.layer, self.places, self.width = dim, layer, places, width

    def add_to(self, block: Block) -> None:
        """Give a block its convolutions.

        Raises:
            CallError: The block lacks one of the places.
        """
        if "A" in self.places:
            block.attention_convolution = self._made("A")(self.dim)
        if "B" in self.places and not block.attention.convolve(self._made("B")):
            self._refuse("B", block.attention, "product of queries, keys and values")
        if "C" in self.places:
            self._require_ffn("C", block)
            block.ffn_convolution = self._made("C")(self.dim)
        if "D" in self.places:
            ffn = self._require_ffn("D", block)
            if not ffn.convolve(self._made("D")):
                self._refuse("D", ffn, "single product before its activation")

    def _made(self, place: str) -> Callable[[int], ShortConvolution]:
        return lambda channels: ShortConvolution(channels, self.width, place)

    def _require_ffn(self, place: str, block: Block) -> Layer:
        if block.ffn is None:
            raise CallError(
                f"convolution places is {self.places}, but layer {self.layer} has no feed-forward network for place "
                f"{place}: {self._without('CD')}"
            )
        return block.ffn

    def _refuse(self, place: str, part: Layer, what: str) -> None:
        raise CallError(
            f"convolution places is {self.places}, but {type(part).__name__} in layer {self.layer} has no {what} for "
            f"place {place}: {self._without(place)}"
        )

    def _without(self, places: str) -> str:
        left = "".join(place for place in self.places if place not in places)
        return f"use places {left}" if left else "use convolution none"
