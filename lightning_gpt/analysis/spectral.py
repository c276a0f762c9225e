"""Spectra that decide whether attention smooths: of the attention pattern, and of its value and output projections.

Attention alone maps a stream X to ``A X H``, where H is the product of the value and output projections; with the
residual connection the result is ``X + A X H``. Along an eigenvector of H with eigenvalue λ, the tokens are mixed by
``I + λA``. What all tokens share (eigenvalue 1 of A) is scaled by ``1 + λ``, a mode with eigenvalue μ, ``|μ| <= 1``, by
``1 + λμ``, and a mode that A averages away (μ = 0) not at all. So attention smooths where ``|1 + λ| > 1``: the shared
part grows. It sharpens where ``|1 + λ| < 1``: the shared part shrinks. For small λ the sign of the real part decides; a
large λ amplifies whatever its sign (``λ = −3`` scales the shared part by −2). Dovonon, Bronstein & Kusner 2024
(2401.04301) derive this; the rate depends on how far the other ``|μ|`` lie below 1, the spectral gap (2312.06182).
Patterns are ``(..., time, time)``; their rows sum to 1 unless stated otherwise.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from lightning_gpt.analysis.tiny import TINY
from lightning_gpt.models.double import double


def spectrum(solver: Callable[[Tensor], Tensor], matrices: Tensor) -> Tensor:
    """Apply ``solver`` to each of ``(..., n, n)``; nan for a matrix that is not finite, where a solver would fail."""
    finite = matrices.isfinite().all(dim=-1).all(dim=-1)
    values = solver(torch.where(finite[..., None, None], matrices, 0.0))
    return torch.where(finite[..., None], values, torch.nan)


def spectral_gap(pattern: Tensor) -> Tensor:
    """``1 − |λ₂|`` of each pattern, where λ₂ is its eigenvalue with the second largest modulus; ``(...)``.

    Range: 0 (something besides the mean survives repeated attention; also where ``|λ₂| > 1``, which negative weights
    allow) to 1 (one pass leaves only the mean). Source: 2312.06182, which relates the growth of token similarity to
    this gap.

    A causal pattern is triangular, so its eigenvalues are its diagonal: the weight of each token on itself. In a
    softmax pattern the first of them is 1, and the gap only tells which later token attends most to itself; uniform
    causal attention has a gap of 1/2 at any length. :func:`second_singular_value` depends on the whole pattern.
    """
    if torch.equal(pattern, pattern.tril()):
        moduli = pattern.diagonal(dim1=-2, dim2=-1).abs()  # some attention kinds have negative weights
    else:
        moduli = spectrum(torch.linalg.eigvals, double(pattern)).abs().to(pattern.dtype)
    second: Tensor = moduli.sort(dim=-1, descending=True).values[..., 1]
    return (1 - second).clamp(min=0)


def second_singular_value(pattern: Tensor) -> Tensor:
    """σ₂ of each pattern: the largest gain of attention on what is orthogonal to its strongest mode; ``(...)``.

    Range, for weights that are not negative: 0 (rank one: every token gets the same mixture) to ``√(time / 2)``. The
    bound holds because rows of sum 1 have a norm of at most 1, so ``2σ₂² <= σ₁² + σ₂² <= ‖A‖_F² <= time``. It is
    reached where half of the tokens attend only to one token and the other half only to another. Attention of each
    token to itself has σ₂ = 1.

    σ₂ is the distance in spectral norm to the nearest *matrix* of rank one (Eckart & Young 1936), whose rows need not
    be equal or sum to 1. The nearest pattern with equal rows is at least as far: its distance is the norm of A with the
    mean row subtracted. Source: for symmetric patterns σ₂ is the ``|λ₂|`` of 2312.06182.
    """
    # the square root halves the digits, and σ₂ is far above the square root of what float64 loses
    squares = spectrum(torch.linalg.eigvalsh, double(pattern) @ double(pattern).mT)
    return squares[..., -2].clamp(min=0).sqrt().to(pattern.dtype)


def small_value_projection(values: Tensor, output: Tensor) -> Tensor:
    """``W_O W_V`` of each head, ``(n_head, head_dim, head_dim)``, in float64.

    Its eigenvalues are those of ``H = W_V W_O`` that can differ from 0. H is ``(dim, dim)`` with rank at most head_dim.

    Args:
        values: ``W_V`` of each head, ``(n_head, dim, head_dim)``: values are ``x W_V``.
        output: ``W_O`` of each head, ``(n_head, head_dim, dim)``.
    """
    return double(output) @ double(values)


def value_projection_eigenvalues(projections: Tensor) -> Tensor:
    """Eigenvalues of each head's ``H = W_V W_O`` that can differ from 0: ``(n_head, head_dim)``, complex.

    Source: the matrix H of 2401.04301, for one head at a time. The gain of the LayerNorm before W_V is not included.

    Args:
        projections: As :func:`small_value_projection` returns them.
    """
    return spectrum(torch.linalg.eigvals, projections)


def positive_share(eigenvalues: Tensor) -> Tensor:
    """The share of a spectrum that amplifies what all tokens share: ``Σ_{|1+λ| > 1} |λ| / Σ |λ|``, last dimension.

    "Positive" is the growth ``ln |1 + λ|`` of the shared part in ``X + A X H``, not λ itself: an eigenvalue with a
    negative real part is counted where ``|λ|² > −2 Re λ``. Small eigenvalues count where ``Re λ > 0``.

    Range: 0 (attention sharpens along every eigenvector, or all λ are 0) to 1 (it smooths along every one). Small
    random weights have about 1/2, large ones more, because only the disc of radius 1 around −1 does not amplify.
    Source: our single figure for the condition of 2401.04301 that separates smoothing from sharpening.
    """
    sizes = eigenvalues.abs()
    amplifies = 2 * eigenvalues.real + sizes.square() > 0  # |1 + λ|² − 1, without the rounding of 1 + λ
    return (sizes * amplifies).sum(dim=-1) / sizes.sum(dim=-1).clamp(min=TINY)


def spectral_radius(eigenvalues: Tensor) -> Tensor:
    """``max |λ|`` over the last dimension. Range: at least 0; compare with the residual connection, which has 1."""
    return eigenvalues.abs().amax(dim=-1)
