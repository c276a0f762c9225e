"""Whole numbers from products of floats."""

import math

_ERROR = 1e-9


def ceiling(product: float) -> int:
    """``⌈product⌉`` of what the floats stand for: 0.07 · 100 is 7, although in floats it is 7.000000000000001."""
    return math.ceil(product - _ERROR)
