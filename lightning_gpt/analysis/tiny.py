"""The smallest divisor of the measures."""

TINY = 1e-30
"""Makes 0 / 0 equal 0; far below the square of any activation."""
