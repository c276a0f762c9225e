"""Outliers of a residual stream: how unevenly its entries are spread over dimensions and tokens.

Every function takes streams ``X`` ``(..., time, dim)``, one row per token, and returns one number per stream,
``(...)``, unless stated otherwise.
"""

import torch
from torch import Tensor

from lightning_gpt.analysis.tiny import TINY, over
from lightning_gpt.models.double import double


def activation_kurtosis(x: Tensor) -> Tensor:
    """How unevenly the stream's size is spread over its dimensions.

    ``(1/d Σ_j s_j⁴) / (1/d Σ_j s_j²)²`` with ``s_j`` the root mean square of dimension j over the tokens. Range: 1 (all
    dimensions equally large) to d (one holds everything). Source: He et al. 2024, "Understanding and Minimising Outlier
    Features in Neural Network Training" (2405.19279), section 3, equation for Kurt(X). Computed in float64, because
    fp32 has no room for the fourth powers of streams above 10⁹ or below 10⁻⁷.
    """
    squares = double(x).square().mean(dim=-2)  # s_j²
    shares = squares / squares.mean(dim=-1, keepdim=True).clamp(min=torch.finfo(squares.dtype).tiny)
    return shares.square().mean(dim=-1).to(x)


def largest_activation(x: Tensor) -> Tensor:
    """The largest magnitude, ``max |x_ij|``. Range: at least 0."""
    return x.abs().flatten(-2).amax(dim=-1)


def largest_over_median(x: Tensor) -> Tensor:
    """The largest magnitude over the median one, ``max |x_ij| / median |x_ij|``.

    Range: at least 1; infinite where more than half of the entries are 0, and 0 for a stream of zeros. Source: the
    relative criterion for a massive activation in Sun et al. 2024 (2402.17762), section 2.
    """
    sizes = x.abs().flatten(-2)
    return over(sizes.amax(dim=-1), sizes.median(dim=-1).values)


def dimension_strengths(x: Tensor) -> Tensor:
    """How large each dimension is in most tokens, ``(..., dim)``.

    ``median_i |x_ij| / rms(x_i)``. Range: 0 to √d; about 0.67 in every dimension of Gaussian entries. The median keeps
    a dimension that is large in a few tokens only, a massive activation, from counting. One far above the others is a
    residual sink: "a few fixed dimensions with persistently large activations across most tokens", Qiu et al. 2026
    (2601.22966), section 1. The paper gives no threshold.
    """
    rms = x.square().mean(dim=-1, keepdim=True).sqrt().clamp(min=TINY)
    return (x.abs() / rms).median(dim=-2).values


def residual_sink(x: Tensor) -> Tensor:
    """The largest of the :func:`dimension_strengths`. Range: 0 to √d."""
    return dimension_strengths(x).amax(dim=-1)
