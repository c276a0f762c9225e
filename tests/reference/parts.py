"""Norms, positions and residual rules, slowly and plainly, in float64 NumPy: one sequence ``(time, dim)`` at a time.

Nothing here is shared with the package under test.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np

from tests.reference.formulas import Array

# --- norms -----------------------------------------------------------------------------------------------------


def rms_norm(x: Array, weight: Array, eps: float = 1e-6) -> Array:
    """``g ⊙ x / √(mean x² + ε)`` of each row: Zhang & Sennrich 2019 (1910.07467), eq. 4."""
    return np.stack([weight * row / math.sqrt(sum(value**2 for value in row) / len(row) + eps) for row in x])


def scale_norm(x: Array, gain: float, eps: float = 1e-5) -> Array:
    """``g x / max(‖x‖, ε)`` of each row: Nguyen & Salazar 2019 (1910.05895), eq. 5."""
    return np.stack([gain * row / max(math.sqrt(sum(value**2 for value in row)), eps) for row in x])


def squashed(
    x: Array, squash: Callable[[float], float], alpha: float, shift: float, weight: Array, bias: Array | None
) -> Array:
    """``γ ⊙ f(α x + s) + β``: Zhu et al. 2025 (2503.10622), section 4; Chen et al. 2025 (2512.10938)."""
    made = np.stack([weight * np.array([squash(alpha * value + shift) for value in row]) for row in x])
    return made if bias is None else made + bias


# --- positions -------------------------------------------------------------------------------------------------


def sinusoids(time: int, dim: int) -> Array:
    """``PE(p, 2i) = sin(p / 10000^(2i/d))``, ``PE(p, 2i + 1)`` the cosine: Vaswani et al. 2017, section 3.5."""
    table = np.empty((time, dim))
    for p in range(time):
        for i in range(dim // 2):
            angle = p / 10000 ** (2 * i / dim)
            table[p, 2 * i], table[p, 2 * i + 1] = math.sin(angle), math.cos(angle)
    return table


def rotated(x: Array, base: float = 10000.0, factor: float = 1.0, extension: str = "linear") -> Array:
    """Pairs as complex numbers times ``e^(i p θ_i)``, ``θ_i = b^(−2i/d)``: Su et al. 2021 (2104.09864), eq. 12 to 15.

    ``linear`` takes p / factor for p (Chen et al. 2023, 2306.15595, eq. 4), ``ntk`` ``b · factor^(d/(d−2))`` for b.
    The pair i of a vector is its entries i and i + d/2.
    """
    time, d = x.shape
    turned = np.empty_like(x)
    for p in range(time):
        for i in range(d // 2):
            place = p / factor if extension == "linear" else p
            b = base * factor ** (d / (d - 2)) if extension == "ntk" else base
            number = complex(x[p, i], x[p, i + d // 2]) * np.exp(1j * place * b ** (-2 * i / d))
            turned[p, i], turned[p, i + d // 2] = number.real, number.imag
    return turned


def llama3_frequencies(width: int, base: float, factor: float, original: int, fast: float, slow: float) -> list[float]:
    """By wavelength, as in the code released with Llama 3.1: short ones stay, long ones are divided, others between."""
    found = []
    for pair in range(width // 2):
        theta = base ** (-2 * pair / width)
        wavelength = 2 * math.pi / theta
        if wavelength < original / fast:
            found.append(theta)
        elif wavelength > original / slow:
            found.append(theta / factor)
        else:
            smooth = (original / wavelength - slow) / (fast - slow)
            found.append((1 - smooth) * theta / factor + smooth * theta)
    return found


def alibi_slopes(n_head: int) -> list[float]:
    """``2^(−8/n)`` and its powers for n a power of two; else those of the power below, then every other one of 2n's.

    Press et al. 2022 (2108.12409), section 3 and the footnote on other numbers of heads.
    """
    below = 1
    while 2 * below <= n_head:
        below *= 2
    slopes = [(2 ** (-8 / below)) ** (h + 1) for h in range(below)]
    finer = [(2 ** (-8 / (2 * below))) ** (h + 1) for h in range(2 * below)]
    return slopes + finer[0::2][: n_head - below]


def alibi_bias(time: int, slopes: Sequence[float]) -> Array:
    """``m_h (j − i)``, a slope for each head: ``(n_head, time, time)``."""
    n_head = len(slopes)
    return np.array([[[slopes[h] * (j - i) for j in range(time)] for i in range(time)] for h in range(n_head)])


def t5_bucket(distance: int, n_bucket: int, max_distance: int) -> int:
    """A bucket for each distance up to n/2, then as many for ever longer stretches: Raffel et al. 2020, section 2.1.

    The bucket b of the upper half begins where the distance is ``e · (max_distance / e)^((b − e) / (n − e))``, e = n/2.
    """
    exact = n_bucket // 2
    if distance < exact:
        return distance
    bucket = exact
    while bucket + 1 < n_bucket:
        begins = exact * (max_distance / exact) ** ((bucket + 1 - exact) / (n_bucket - exact))
        if distance < begins * (1 - 1e-12):
            break
        bucket += 1
    return bucket


def t5_bias(time: int, weight: Array, max_distance: int) -> Array:
    """The bucket's number for each head: ``(n_head, time, time)``, 0 above the diagonal, which is never seen."""
    n_bucket, n_head = weight.shape
    bias = np.zeros((n_head, time, time))
    for h in range(n_head):
        for i in range(time):
            for j in range(i + 1):
                bias[h, i, j] = weight[t5_bucket(i - j, n_bucket, max_distance), h]
    return bias


# --- residual rules --------------------------------------------------------------------------------------------

Branch = Callable[[Array], Array]


def pre(h: Array, branch: Branch, norm: Branch) -> Array:
    """``H + F(LN(H))``: Xiong et al. 2020 (2002.04745), fig. 1b."""
    return h + branch(norm(h))


def post(h: Array, branch: Branch, norm: Branch) -> Array:
    """``LN(H + F(H))``: Vaswani et al. 2017, section 3.1."""
    return norm(h + branch(h))


def no_residual(h: Array, branch: Branch, norm: Branch) -> Array:
    """``F(LN(H))``."""
    return branch(norm(h))


def deepnorm(h: Array, branch: Branch, norm: Branch, n_layer: int) -> Array:
    """``LN(α H + F(H))``, ``α = (2L)^¼``: Wang et al. 2022 (2203.00555), section 2 and fig. 2, decoder only."""
    return norm(math.sqrt(math.sqrt(2 * n_layer)) * h + branch(h))


def sandwich(h: Array, branch: Branch, norm: Branch, out_norm: Branch) -> Array:
    """``H + LN'(F(LN(H)))``: Ding et al. 2021 (2105.13290), section 3.3."""
    return h + out_norm(branch(norm(h)))


def normed_branch(h: Array, branch: Branch, norm: Branch) -> Array:
    """``H + LN(F(H))``: Liu et al. 2021 (2111.09883), fig. 1, right."""
    return h + norm(branch(h))


def scaled(h: Array, branch: Branch, norm: Branch, scale: Array | float) -> Array:
    """``H + γ ⊙ F(LN(H))``: Touvron et al. 2021 (2103.17239), section 2; with no norm and one number, ReZero."""
    return h + scale * branch(norm(h))
