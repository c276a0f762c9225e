"""Rotary positions, and two ways to a longer context than was trained on."""

import torch
from torch import Tensor

from lightning_gpt.errors import CallError
from lightning_gpt.models.positions.scheme import Positions, frequencies, position_schemes, require_even


@position_schemes.register("rotary")
class RotaryPositions(Positions):
    """Pairs of a query's or key's dimensions rotated by ``p θ_i``: Su et al. 2021 (2104.09864), eq. 34.

    The pairs are ``(i, i + width/2)``, and ``θ_i = base^(−2i/width)`` for vectors of any even width. A longer context
    is reached by a ``factor`` above 1: ``linear`` divides the positions (Chen et al. 2023, 2306.15595, eq. 4); ``ntk``
    raises the base to ``base · factor^(width/(width−2))``, which leaves the highest frequencies as they were (bloc97
    2023, in Peng et al. 2023, 2309.00071, section 3.1). :class:`~lightning_gpt.models.positions.yarn.YarnPositions`
    treats each frequency by its wavelength.

    Args:
        base: The longest wave is about ``2π base`` positions long.
        factor: How many times longer the context is.
        extension: How it is reached, ``linear`` or ``ntk``.
    """

    rotates = True

    def __init__(self, base: float = 10000.0, factor: float = 1.0, extension: str = "linear") -> None:
        super().__init__()
        if extension not in ("linear", "ntk"):
            raise CallError(f"position extension is {extension!r}; it must be one of linear, ntk")
        if not factor >= 1:
            raise CallError(f"position factor is {factor}; it must be at least 1")
        self.base, self.factor, self.extension = base, factor, extension

    def check_width(self, width: int, name: str = "a head's width") -> None:
        require_even(width, "rotary positions", name)

    def frequencies(self, width: int, device: torch.device) -> Tensor:
        """``θ_i`` ``(width / 2,)`` in fp32: radians a position."""
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
