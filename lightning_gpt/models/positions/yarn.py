"""Rotary positions for a longer context than in training, with each frequency scaled by its wavelength."""

import math

import torch
from torch import Tensor

from lightning_gpt.errors import CallError
from lightning_gpt.models.positions.rotary import Base, Factor, RotaryPositions, Turns
from lightning_gpt.models.positions.scheme import frequencies, position_schemes
from lightning_gpt.options import Length, Positive, ShareAboveZero


@position_schemes.register("yarn")
class YarnPositions(RotaryPositions):
    """Rotary positions that stretch only the slow pairs, with sharper scores: Peng et al. 2023 (2309.00071).

    With ``s = factor``, the frequencies are ``(1 − γ) θ_i / s + γ θ_i`` ("NTK-by-parts", section 3.2, eq. 17 to 20).
    ``r = original · θ_i / 2π`` is the number of turns that pair i makes within the original context. Pairs with
    ``r ≥ beta_fast`` keep their frequency (γ = 1), pairs with ``r ≤ beta_slow`` are fully interpolated (γ = 0), and γ
    is a ramp between them. In the paper's eq. 18 γ rises linearly with r; in its code, and in all models published with
    YaRN, γ is linear in the pair's index, between two integer indices. This class follows the code.

    The softmax's temperature (section 3.4, eq. 21 and 22) is folded into cosines and sines: both are multiplied by
    ``√(1/t) = 0.1 ln s + 1``, so that queries and keys carry it and scores are multiplied by ``1/t``. Attention without
    a softmax of rotated queries and keys (``attention: linear``) has its outputs scaled instead.

    Args:
        block_size: The model's block size.
        base: The longest wavelength of the original frequencies is about ``2π base`` positions.
        factor: Factor by which the context is extended; 1 changes nothing.
        original: Length the model was originally trained on, in tokens; ``block_size`` if None.
        beta_fast: Number of turns within the original context from which a pair keeps its frequency; β in the paper.
        beta_slow: Number of turns up to which a pair is fully interpolated; α in the paper.
        magnitude: The factor ``√(1/t)``; ``0.1 ln s + 1`` if None.
        rounded: Whether the ramp runs between two integer indices, as in the paper's code, rather than between the
            fractional ones, as in gpt-oss.
        share: As in ``rotary``.
    """

    def __init__(
        self,
        block_size: int,
        base: Base = 10000.0,
        factor: Factor = 1.0,
        original: Length | None = None,
        beta_fast: Turns = 32.0,
        beta_slow: Turns = 1.0,
        magnitude: Positive | None = None,
        rounded: bool = True,
        share: ShareAboveZero = 1.0,
    ) -> None:
        super().__init__(base, factor, share=share)
        if beta_slow >= beta_fast:
            raise CallError(f"position beta_slow is {beta_slow}; it must be below beta_fast, which is {beta_fast}")
        self.original, self.knows_length = original or block_size, original is None
        self.beta_fast, self.beta_slow, self.rounded = beta_fast, beta_slow, rounded
        self.magnitude = 0.1 * math.log(factor) + 1 if magnitude is None else magnitude

    def frequencies(self, width: int, device: torch.device) -> Tensor:
        trained, kept = frequencies(width, self.base, device), self.kept(width, device)
        return trained / self.factor * (1 - kept) + trained * kept

    def kept(self, width: int, device: torch.device) -> Tensor:
        """γ of each pair ``(width / 2,)``: the fraction of its original frequency that it keeps, from 1 down to 0."""
        first, last = self._pair_of(self.beta_fast, width), self._pair_of(self.beta_slow, width)
        if self.rounded:
            first, last = math.floor(first), math.ceil(last)
        first, last = max(first, 0), min(last, width - 1)
        length = max(last - first, 0.001)  # avoids division by 0 if both are the same pair
        return 1 - ((torch.arange(width // 2, device=device) - first) / length).clamp(0, 1)

    def _pair_of(self, turns: float, width: int) -> float:
        """The fractional index of the pair that makes ``turns`` turns within the original context."""
        return width * math.log(self.original / (turns * 2 * math.pi)) / (2 * math.log(self.base))

    def rotation(self, width: int, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        cos, sin = super().rotation(width, positions, dtype)
        return cos * self.magnitude, sin * self.magnitude
