"""The layer diagnostics, slowly and plainly, in float64 NumPy: one stream ``(time, dim)`` or pattern ``(time, time)``.

Nothing here is shared with the package under test.
"""

import math

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def token_cosine(x: Array) -> float:
    """The mean of ``x_i·x_j / (‖x_i‖‖x_j‖)`` over all pairs of different tokens."""
    cosines = []
    for i in range(len(x)):
        for j in range(len(x)):
            if i != j:
                cosines.append(sum(x[i] * x[j]) / math.sqrt(sum(x[i] ** 2) * sum(x[j] ** 2)))
    return sum(cosines) / len(cosines)


def rank_residual(x: Array) -> float:
    """``‖X − 1x̄ᵀ‖_F / ‖X‖_F``: Dong et al. 2021 (2103.03404), section 2, in Frobenius's norm."""
    mean = sum(x) / len(x)
    residual = sum(sum((row - mean) ** 2) for row in x)
    return math.sqrt(residual / sum(sum(row**2) for row in x))


def effective_rank(x: Array) -> float:
    """``exp H(σ / Σσ)``: Roy & Vetterli 2007, definition 1."""
    sigma = np.linalg.svd(x, compute_uv=False)
    shares = [value / sum(sigma) for value in sigma if value > 0]
    return math.exp(-sum(share * math.log(share) for share in shares))


def dirichlet_energy(x: Array, pattern: Array) -> float:
    """``½ Σ_ij A_ij ‖x_i − x_j‖² / ‖X‖²``."""
    total = 0.0
    for i in range(len(x)):
        for j in range(len(x)):
            total += pattern[i, j] * sum((x[i] - x[j]) ** 2) / 2
    return total / sum(sum(row**2) for row in x)


def activation_rms(x: Array) -> float:
    """``√(Σ x² / (t·d))``."""
    return math.sqrt(sum(sum(row**2) for row in x) / x.size)


def linear_cka(x: Array, y: Array) -> float:
    """By Gram matrices: ``HSIC(K, L) / √(HSIC(K, K) HSIC(L, L))``, Kornblith et al. 2019 (1905.00414), eq. 3 and 4."""
    n = len(x)
    centre = np.eye(n) - np.ones((n, n)) / n

    def hsic(k: Array, other: Array) -> float:
        return float(np.trace(k @ centre @ other @ centre)) / (n - 1) ** 2

    k, other = x @ x.T, y @ y.T
    return hsic(k, other) / math.sqrt(hsic(k, k) * hsic(other, other))


def attention_entropy(pattern: Array) -> float:
    """The mean over the rows of ``−Σ_j A_ij ln A_ij``."""
    return float(np.mean([-sum(a * math.log(a) for a in row if a > 0) for row in pattern]))


def attention_distance(pattern: Array) -> float:
    """The mean over the rows of ``Σ_j A_ij (i − j)``."""
    return float(np.mean([sum(a * (i - j) for j, a in enumerate(row)) for i, row in enumerate(pattern)]))


def first_token_share(pattern: Array) -> float:
    """The mean of ``A_i0`` over all rows but the first."""
    return float(np.mean([row[0] for row in pattern[1:]]))


def spectral_gap(pattern: Array) -> float:
    """``1 − |λ₂|`` from all eigenvalues."""
    moduli = sorted((abs(value) for value in np.linalg.eigvals(pattern)), reverse=True)
    return 1 - moduli[1]


def second_singular_value(pattern: Array) -> float:
    """σ₂ from all singular values."""
    return float(np.linalg.svd(pattern, compute_uv=False)[1])


def positive_share(w_v: Array, w_o: Array) -> float:
    """The part of Σ|λ| of ``W_V W_O`` whose λ make a stream that all tokens share longer: ``|1 + λ| > 1``."""
    values = value_spectrum(w_v, w_o)
    return float(sum(abs(value) for value in values if abs(1 + value) > 1) / sum(abs(values)))


def value_spectrum(w_v: Array, w_o: Array) -> NDArray[np.complex128]:
    """All eigenvalues of ``W_V W_O`` ``(dim, dim)`` of one head, the largest first."""
    values = np.linalg.eigvals(w_v @ w_o)
    return values[np.argsort(-abs(values))]
