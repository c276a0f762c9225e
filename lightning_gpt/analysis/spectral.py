"""The spectra that decide whether attention smooths: of the pattern, and of what it does to the values.

Attention alone takes a stream X to ``A X H``, with H the product of the value and output projections, and a residual
path makes it ``X + A X H``. Along an eigenvector of H of eigenvalue λ the tokens are mixed by ``I + λA``. What all
tokens share (A's eigenvalue 1) is scaled by ``1 + λ``, a mode of eigenvalue μ, ``|μ| <= 1``, by ``1 + λμ``: where the
real part of λ is positive the shared part outgrows the rest, and attention smooths; where it is negative the shared
part shrinks first, and attention sharpens. Dovonon, Bronstein & Kusner 2024 (2401.04301) work this out; how fast it
goes depends on how far the other ``|μ|`` lie below 1, the spectral gap (2312.06182). Patterns are ``(..., time,
time)``, rows of sum 1.
"""

from collections.abc import Callable

import torch
from torch import Tensor


def spectrum(solver: Callable[[Tensor], Tensor], matrices: Tensor) -> Tensor:
    """``solver`` of each of ``(..., n, n)``, and nan for a matrix that is not finite, at which a solver would fail."""
    finite = matrices.isfinite().all(dim=-1).all(dim=-1)
    values = solver(torch.where(finite[..., None, None], matrices, 0.0))
    return torch.where(finite[..., None], values, torch.nan)


def spectral_gap(pattern: Tensor) -> Tensor:
    """``1 − |λ₂|``, with λ₂ the eigenvalue of second largest modulus of a row-stochastic pattern; ``(...)``.

    Range: 0 (something besides the mean survives repeated attention) to 1 (one pass leaves the mean only). Source:
    2312.06182, which ties the growth of token similarity to this gap.

    A causal pattern is triangular: its eigenvalues are its diagonal, the weights of tokens on themselves, with 1 for
    the first. So the gap of causal attention says only which later token attends most to itself; uniform causal
    attention has 1/2 at any length. :func:`second_singular_value` sees the whole pattern.
    """
    if torch.equal(pattern, pattern.tril()):
        moduli = pattern.diagonal(dim1=-2, dim2=-1)
    else:
        moduli = spectrum(torch.linalg.eigvals, pattern.double()).abs().to(pattern.dtype)
    second: Tensor = moduli.sort(dim=-1, descending=True).values[..., 1]
    return (1 - second).clamp(min=0)


def second_singular_value(pattern: Tensor) -> Tensor:
    """σ₂ of a pattern: the most that attention keeps of what is not its one strongest mode; ``(...)``.

    Range: 0 (a matrix of rank one: every token gets the same mixture) to √time; 1 for attention of each token to
    itself. It is the distance in spectral norm to the nearest pattern of rank one (Eckart & Young 1936), and defined by
    all weights, where a causal pattern's eigenvalues are its diagonal alone. Source: for patterns that are symmetric it
    is the ``|λ₂|`` of 2312.06182.
    """
    # the square root halves the digits, and σ₂ is far above the square root of what float64 loses
    squares = spectrum(torch.linalg.eigvalsh, pattern.double() @ pattern.double().mT)
    return squares[..., -2].clamp(min=0).sqrt().to(pattern.dtype)


def value_projection_eigenvalues(values: Tensor, output: Tensor) -> Tensor:
    """The eigenvalues of each head's ``H = W_V W_O`` that need not be 0: ``(n_head, head_dim)``, complex.

    H is ``(dim, dim)`` of rank at most head_dim; ``W_V W_O`` and ``W_O W_V`` have the same eigenvalues besides 0, and
    the second is ``(head_dim, head_dim)``. Source: the matrix H of 2401.04301, a head at a time. A LayerNorm's gain
    before W_V is not in it.

    Args:
        values: ``W_V`` of each head, ``(n_head, dim, head_dim)``: values are ``x W_V``.
        output: ``W_O`` of each head, ``(n_head, head_dim, dim)``.
    """
    return spectrum(torch.linalg.eigvals, output.double() @ values.double())


def positive_share(eigenvalues: Tensor) -> Tensor:
    """The part of a spectrum that smooths: ``Σ_{Re λ > 0} |λ| / Σ |λ|`` over the last dimension.

    Range: 0 (attention sharpens along every eigenvector) to 1 (it smooths along every one); 1/2 for random weights.
    Source: our one figure for the sign that 2401.04301 finds to decide between smoothing and sharpening.
    """
    sizes = eigenvalues.abs()
    return (sizes * (eigenvalues.real > 0)).sum(dim=-1) / sizes.sum(dim=-1).clamp(min=1e-30)


def spectral_radius(eigenvalues: Tensor) -> Tensor:
    """``max |λ|`` over the last dimension. Range: at least 0; the residual path, beside it, has 1."""
    return eigenvalues.abs().amax(dim=-1)
