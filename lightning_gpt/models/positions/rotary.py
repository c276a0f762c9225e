"""Rotary positions, with two ways to extend the context beyond the training length."""

from typing import Annotated, Literal

import torch
from torch import Tensor

from lightning_gpt.errors import CallError
from lightning_gpt.models.positions.scheme import Positions, frequencies, position_schemes, require_even
from lightning_gpt.options import Range, ShareAboveZero

Base = Annotated[float, Range(above=1, most=10**12)]
Factor = Annotated[float, Range(1, 10**6)]
Turns = Annotated[float, Range(1e-6, 10**6)]
"""Rotations of a pair within the training length, by which slow pairs are told from fast ones."""


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
        share: Share of a vector's dimensions that rotate, counted from the first and rounded down; the others stay as
            they are. GPT-NeoX rotates a quarter of each head (Black et al. 2022, 2204.06745, section 2.1). Of ``width``
            above, that many dimensions remain.
    """

    rotates = True

    def __init__(
        self,
        base: Base = 10000.0,
        factor: Factor = 1.0,
        extension: Literal["linear", "ntk"] = "linear",
        share: ShareAboveZero = 1.0,
    ) -> None:
        super().__init__()
        self.base, self.factor, self.extension, self.share = base, factor, extension, share

    def check_width(self, width: int, name: str = "a head's width") -> None:
        if self.share == 1:
            require_even(width, "rotary positions", name)
        elif self.rotated(width) % 2 or not self.rotated(width):
            raise CallError(
                f"rotary positions act on pairs of dimensions, and share {self.share:g} of {name} {width} is "
                f"{self.rotated(width)} dimensions; it must be 2, 4, 6, ..."
            )

    def rotated(self, width: int) -> int:
        """How many dimensions of a vector of ``width`` rotate."""
        return int(width * self.share)

    def frequencies(self, width: int, device: torch.device) -> Tensor:
        """``θ_i`` ``(width / 2,)`` of ``width`` dimensions that all rotate, in fp32, in radians per position."""
        if self.extension == "ntk" and width > 2:
            return frequencies(width, self.base * self.factor ** (width / (width - 2)), device)
        return frequencies(width, self.base, device) / self.factor

    def rotation(self, width: int, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        angles = positions[..., None] * self.frequencies(self.rotated(width), positions.device).to(
            dtype
        )  # (..., T, D/2)
        if angles.ndim == 3:
            angles = angles[:, None]  # (B, 1, T, D/2)
        return angles.cos(), angles.sin()

    def rotate(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        cos, sin = cos.to(x.dtype), sin.to(x.dtype)
        half = cos.shape[-1]
        first, second = x[..., :half], x[..., half : 2 * half]
        rest = [x[..., 2 * half :]] if self.share < 1 else []
        return torch.cat([first * cos - second * sin, second * cos + first * sin, *rest], dim=-1)


def own_rotary(base: float) -> Positions:
    """A scheme of a layer's own; layers with equal bases share what is computed of it in a pass."""
    return position_schemes.make({"kind": "rotary", "base": base})
