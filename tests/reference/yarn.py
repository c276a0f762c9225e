"""YaRN, slowly and plainly, in float64 NumPy. Nothing here is shared with the package under test."""

import math

import numpy as np

from tests.reference.formulas import Array


def turns(pair: int, width: int, base: float, original: int) -> float:
    """``r = L / λ``, λ the wavelength ``2π base^(2i/width)`` of the pair: Peng et al. 2023 (2309.00071), eq. 17."""
    return original / (2 * math.pi * base ** (2 * pair / width))


def ramp_of_the_paper(r: float, fast: float, slow: float) -> float:
    """γ, the share of the original frequency: 0 up to ``slow`` turns, 1 from ``fast`` on, linear in r (eq. 18)."""
    return 0.0 if r < slow else 1.0 if r > fast else (r - slow) / (fast - slow)


def ramp_of_the_code(pair: int, width: int, base: float, original: int, fast: float, slow: float) -> float:
    """γ as the authors' code has it: linear in the pair's index, between whole indices."""

    def pair_of(r: float) -> float:  # turns(pair_of(r)) = r
        return width / 2 * math.log(original / (2 * math.pi * r), base)

    first, last = max(math.floor(pair_of(fast)), 0), min(math.ceil(pair_of(slow)), width - 1)
    if pair <= first:
        return 1.0
    return 0.0 if pair >= last else (last - pair) / (last - first)


def frequencies(width: int, base: float, factor: float, original: int, fast: float, slow: float) -> list[float]:
    """``(1 − γ) θ / s + γ θ`` of each pair: eq. 20."""
    found = []
    for pair in range(width // 2):
        theta, kept = base ** (-2 * pair / width), ramp_of_the_code(pair, width, base, original, fast, slow)
        found.append((1 - kept) * theta / factor + kept * theta)
    return found


def rotated(x: Array, base: float, factor: float, original: int, fast: float = 32.0, slow: float = 1.0) -> Array:
    """Pairs as complex numbers times ``√(1/t) e^(i p θ)``, ``√(1/t) = 0.1 ln s + 1`` (eq. 22).

    The pair i of a vector is its entries i and i + width/2.
    """
    time, width = x.shape
    theta = frequencies(width, base, factor, original, fast, slow)
    made = np.empty_like(x)
    for p in range(time):
        for i in range(width // 2):
            number = complex(x[p, i], x[p, i + width // 2]) * np.exp(1j * p * theta[i])
            number *= 0.1 * math.log(factor) + 1
            made[p, i], made[p, i + width // 2] = number.real, number.imag
    return made
