"""Rotary positions, with two ways to extend the context beyond the training length."""

from typing import Annotated, Literal

import torch
from torch import Tensor

from lightning_gpt.models.positions.scheme import Positions, frequencies, position_schemes, require_even
from lightning_gpt.options import Range

Base = Annotated[float, Range(above=1, most=10**12)]
Factor = Annotated[float, Range(1, 10**6)]


@position_schemes.register("rotary")
class RotaryPositions(Positions):
    """Rotates pairs of a query's or key's dimensions by ``p θ_i``: Su et al. 2021 (2104.09864), eq. 34.

    The pairs are ``(i, i + width/2)``, and ``θ_i = base^(−2i/width)`` for vectors of any even width. A ``factor`` above
    1 extends the context: ``linear`` divides the positions (Chen et al. 2023, 2306.15595, eq. 4); ``ntk`` raises the
    base to ``base · factor^(width/(width−2))``, which leaves the highest frequencies unchanged (bloc97 2023, in Peng et
    al. 2023, 2309.00071, section 3.1). :class:`~lightning_gpt.models.positions.yarn.YarnPositions` treats each
    frequency according to its wavelength.

    Args:
        base: The longest wavelength is about ``2π base`` positions.
        factor: Factor by which the context is extended.
        extension: How it is extended, ``linear`` or ``ntk``.
    """

    rotates = True

    def __init__(
        self, base: Base = 10000.0, factor: Factor = 1.0, extension: Literal["linear", "ntk"] = "linear"
    ) -> None:
        super().__init__()
        self.base, self.factor, self.extension = base, factor, extension

    def check_width(self, width: int, name: str = "a head's width") -> None:
        require_even(width, "rotary positions", name)

    def frequencies(self, width: int, device: torch.device) -> Tensor:
        """``θ_i`` ``(width / 2,)`` in fp32, in radians per position."""
        if self.extension == "ntk" and width > 2:
            return frequencies(width, self.base * self.factor ** (width / (width - 2)), device)
        return frequencies(width, self.base, device) / self.factor

    def rotation(self, width: int, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        angles = positions[..., None] * self.frequencies(width, positions.device).to(dtype)  # (..., T, D/2)
        if angles.ndim == 3:
            angles = angles[:, None]  # (B, 1, T, D/2)
        return angles.cos(), angles.sin()

    def rotate(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        cos, sin = cos.to(x.dtype), sin.to(x.dtype)
        first, second = x.chunk(2, dim=-1)
        return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)
