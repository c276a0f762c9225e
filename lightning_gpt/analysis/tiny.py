"""The smallest divisor of the measures, and quotients without one."""

from torch import Tensor

TINY = 1e-30
"""Makes 0 / 0 equal 0; far below the square of any activation."""


def over(size: Tensor, other: Tensor) -> Tensor:
    """``size / other`` of two sizes of at least 0: 0 of nothing, and infinite of something over nothing."""
    return (size / other).masked_fill(size == 0, 0.0)
