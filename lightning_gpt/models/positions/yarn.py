"""Rotary positions for a longer context than was trained on, each frequency treated by its wavelength."""

import math

import torch
from torch import Tensor

from lightning_gpt.errors import CallError
from lightning_gpt.models.positions.rotary import RotaryPositions
from lightning_gpt.models.positions.scheme import frequencies, position_schemes


@position_schemes.register("yarn")
class YarnPositions(RotaryPositions):
    """Rotary positions of which only the slow pairs are stretched, and sharper scores: Peng et al. 2023 (2309.00071).

    With ``s = factor``, the frequencies are ``(1 − γ) θ_i / s + γ θ_i`` ("NTK-by-parts", section 3.2, eq. 17 to 20).
    ``r = original · θ_i / 2π`` is the number of turns that pair i makes within the original context. Pairs of
    ``r ≥ beta_fast`` keep their frequency (γ = 1), pairs of ``r ≤ beta_slow`` are interpolated in full (γ = 0), and γ
    is a ramp between them. The paper's eq. 18 lets it rise linearly with r; its code, and all models published with
    YaRN, let it rise linearly with the pair's index, from one whole index to another. This class does as the code.

    The softmax's temperature (section 3.4, eq. 21 and 22) is folded into cosines and sines: both are multiplied by
    ``√(1/t) = 0.1 ln s + 1``, queries and keys then carry it, and scores are multiplied by ``1/t``. What makes no
    softmax of its rotated queries and keys (``attention: linear``) has its outputs scaled instead.

    Args:
        block_size: The model's block size.
        base: The longest wave of the original frequencies is about ``2π base`` positions long.
        factor: How many times longer the context is; 1 changes nothing.
        original: Length that the model was trained on before, in tokens; ``block_size`` when None.
        beta_fast: Turns within the original context from which on a pair keeps its frequency; β in the paper.
        beta_slow: Turns up to which a pair is interpolated in full; α in the paper.
    """

    def __init__(
        self,
        block_size: int,
        base: float = 10000.0,
        factor: float = 1.0,
        original: int | None = None,
        beta_fast: float = 32.0,
        beta_slow: float = 1.0,
    ) -> None:
        super().__init__(base, factor)
        if original is not None and (not isinstance(original, int) or original < 1):
            raise CallError(f"position original is {original!r}; it must be a whole number of at least 1")
        if not 0 < beta_slow < beta_fast:
            raise CallError(
                f"position beta_slow is {beta_slow} and beta_fast is {beta_fast}; "
                f"they must be above 0, beta_slow the smaller one"
            )
        self.original = original or block_size
        self.beta_fast, self.beta_slow = beta_fast, beta_slow

    @property
    def magnitude(self) -> float:
        """``√(1/t)``: what the lengths of rotated queries and keys are multiplied by."""
        return 0.1 * math.log(self.factor) + 1

    def frequencies(self, width: int, device: torch.device) -> Tensor:
        trained, kept = frequencies(width, self.base, device), self.kept(width, device)
        return trained / self.factor * (1 - kept) + trained * kept

    def kept(self, width: int, device: torch.device) -> Tensor:
        """γ of each pair ``(width / 2,)``: how much of its original frequency it keeps, from 1 down to 0."""
        first = max(math.floor(self._pair_of(self.beta_fast, width)), 0)
        last = min(math.ceil(self._pair_of(self.beta_slow, width)), width - 1)
        length = max(last - first, 0.001)  # no division by 0 where both are one pair
        return 1 - ((torch.arange(width // 2, device=device) - first) / length).clamp(0, 1)

    def _pair_of(self, turns: float, width: int) -> float:
        """The index, a fraction, of the pair that makes so many turns within the original context."""
        return width * math.log(self.original / (turns * 2 * math.pi)) / (2 * math.log(self.base))

    def rotation(self, width: int, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        cos, sin = super().rotation(width, positions, dtype)
        return cos * self.magnitude, sin * self.magnitude
