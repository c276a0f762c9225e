"""Rotary positions for a longer context than in training, as in Llama 3.1."""

import math

import torch
from torch import Tensor

from lightning_gpt.errors import CallError
from lightning_gpt.models.double import double
from lightning_gpt.models.positions.rotary import Base, Factor, RotaryPositions, Turns
from lightning_gpt.models.positions.scheme import frequencies, position_schemes
from lightning_gpt.options import Length, ShareAboveZero


@position_schemes.register("llama3")
class Llama3Positions(RotaryPositions):
    """Rotary positions that stretch only the slow pairs, as the code of Llama 3.1 does (Dubey et al. 2024, 2407.21783).

    ``r = original · θ_i / 2π`` is the number of turns that pair i makes within the original context. The frequencies
    are ``(1 − γ) θ_i / factor + γ θ_i`` with ``γ = (r − slow) / (fast − slow)``, cut to 0 and 1: pairs with ``r ≥
    fast`` keep their frequency, pairs with ``r ≤ slow`` are fully interpolated. The scores keep their scale.

    Args:
        block_size: The model's block size.
        base: The longest wavelength of the original frequencies is about ``2π base`` positions.
        factor: Factor by which the context is extended; 1 changes nothing.
        original: Length the model was originally trained on, in tokens; ``block_size`` if None.
        fast: Number of turns within the original context from which a pair keeps its frequency.
        slow: Number of turns up to which a pair is fully interpolated.
        share: As in ``rotary``.
    """

    def __init__(
        self,
        block_size: int,
        base: Base = 500000.0,
        factor: Factor = 8.0,
        original: Length | None = None,
        fast: Turns = 4.0,
        slow: Turns = 1.0,
        share: ShareAboveZero = 1.0,
    ) -> None:
        super().__init__(base, factor, share=share)
        if slow >= fast:
            raise CallError(f"position slow is {slow}; it must be below fast, which is {fast}")
        self.original, self.knows_length = original or block_size, original is None
        self.fast, self.slow = fast, slow

    def frequencies(self, width: int, device: torch.device) -> Tensor:
        trained = double(frequencies(width, self.base, device))
        turns = self.original * trained / (2 * math.pi)
        kept = ((turns - self.slow) / (self.fast - self.slow)).clamp(0, 1)
        return ((1 - kept) * trained / self.factor + kept * trained).float().to(device=device)
