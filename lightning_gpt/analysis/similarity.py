"""How similar the tokens of a residual stream are: measures of over-smoothing and rank collapse.

Every function takes streams ``X`` ``(..., time, dim)``, one row ``x_i`` per token, and returns one number per stream,
``(...)``. Over-smoothing means that the rows become more similar with depth; rank collapse is the limit in which all
rows are equal.
"""

import torch
from torch import Tensor

from lightning_gpt.analysis.spectral import spectrum
from lightning_gpt.analysis.tiny import TINY
from lightning_gpt.models.double import double


def token_cosine(x: Tensor) -> Tensor:
    """Mean cosine similarity of two different tokens.

    ``1/(t(t−1)) Σ_{i≠j} x_i·x_j / (‖x_i‖‖x_j‖)``. Range: −1/(t−1) to 1; 1 where all tokens point in one direction, 0
    where they are orthogonal; the cosine with a zero vector counts as 0. Source: the token similarity of 2312.06182 and
    2401.04301 ("angle convergence"), averaged over the pairs of different tokens. Needs ``time >= 2``.
    """
    time = x.shape[-2]
    unit: Tensor = x / x.norm(dim=-1, keepdim=True).clamp(min=TINY)
    of_all_pairs = unit.sum(dim=-2).square().sum(dim=-1)
    of_each_with_itself = unit.square().sum(dim=(-2, -1))
    return (of_all_pairs - of_each_with_itself) / (time * (time - 1))


def rank_residual(x: Tensor) -> Tensor:
    """The relative size of a stream after subtracting the mean token.

    ``‖X − 1x̄ᵀ‖_F / ‖X‖_F`` with ``x̄`` the mean token. Range: 0 (all tokens equal: rank collapse) to 1 (the mean token
    is 0). Source: the residual ``res(X) = X − 1xᵀ`` of Dong et al. 2021 (2103.03404), section 2, which uses another
    norm; in the Frobenius norm, where the minimising x is the mean, it is the similarity measure ``μ(X)`` of
    2405.18781, here relative to ``‖X‖_F``.
    """
    residual = (x - x.mean(dim=-2, keepdim=True)).square().sum(dim=(-2, -1))
    return (residual / x.square().sum(dim=(-2, -1)).clamp(min=TINY)).sqrt()


def effective_rank(x: Tensor) -> Tensor:
    """The number of directions that the tokens fill, as a real number.

    ``exp(−Σ_k p_k ln p_k)`` with ``p_k = σ_k / Σ_j σ_j`` and ``σ`` the singular values of X. Range: 1 (all tokens on
    one line) to min(time, dim) (equal singular values). Source: Roy & Vetterli 2007, "The effective rank: a measure of
    effective dimensionality", definition 1. Computed in float64, because small singular values matter here, from the
    eigenvalues of the smaller Gram matrix, which takes a third of the time of an SVD and loses singular values below
    10⁻⁸ of the largest.
    """
    x64 = double(x)
    gram = x64 @ x64.mT if x.shape[-2] <= x.shape[-1] else x64.mT @ x64
    sigma = spectrum(torch.linalg.eigvalsh, gram).clamp(min=0).sqrt()
    p = sigma / sigma.sum(dim=-1, keepdim=True).clamp(min=TINY)
    entropy: Tensor = torch.special.entr(p).sum(dim=-1)
    return entropy.exp().to(x.dtype)


def dirichlet_energy(x: Tensor, pattern: Tensor) -> Tensor:
    """How much tokens differ from the tokens they attend to, relative to their size.

    ``½ Σ_ij A_ij ‖x_i − x_j‖² / ‖X‖²_F``. Range: at least 0; 0 where every token equals all tokens it attends to, which
    includes attention of each token to itself only. Source: the Dirichlet energy of graph networks, Cai & Wang 2020
    (2006.13318), with the attention pattern A as the graph, divided by the stream's size to make layers comparable.

    Args:
        x: The stream that enters the block, ``(..., time, dim)``.
        pattern: The block's attention, ``(..., time, time)``; rows sum to 1.
    """
    squares = x.square().sum(dim=-1)  # (..., T)
    distances = squares[..., :, None] + squares[..., None, :] - 2 * x @ x.mT
    return (pattern * distances.clamp(min=0)).sum(dim=(-2, -1)) / 2 / squares.sum(dim=-1).clamp(min=TINY)


def activation_rms(x: Tensor) -> Tensor:
    """Root mean square of all entries, ``√(Σ x² / (t·d))``. Range: at least 0; it grows with depth in pre-LN models.

    Source: Xiong et al. 2020 (2002.04745), lemma 2, on the size of the residual stream by layer.
    """
    return x.square().mean(dim=(-2, -1)).sqrt()


def linear_cka(x: Tensor, y: Tensor) -> Tensor:
    """Linear centred kernel alignment of two representations of the same tokens.

    ``‖YᵀX‖²_F / (‖XᵀX‖_F ‖YᵀY‖_F)`` with the mean token subtracted from both. Range: 0 to 1; 1 where one is a rotation
    and scaling of the other; 0 also where one of them is constant. Source: Kornblith et al. 2019 (1905.00414), eq. 4
    with the linear kernel of its table 1. Widths may differ; pass the tokens of a whole batch as one ``(tokens, dim)``.
    """
    x, y = (each - each.mean(dim=-2, keepdim=True) for each in (x, y))
    shared: Tensor = (y.mT @ x).square().sum(dim=(-2, -1))
    sizes: Tensor = (x.mT @ x).norm(dim=(-2, -1)) * (y.mT @ y).norm(dim=(-2, -1))
    return shared / sizes.clamp(min=TINY)
