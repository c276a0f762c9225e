"""Normalisation of the residual stream, and of queries and keys."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_gpt.models.layer import Layer
from lightning_gpt.models.registry import Registry
from lightning_gpt.options import NotNegative, Positive

norms: Registry["Norm"] = Registry("norm", "dim", "bias")
"""Every norm: ``(..., dim)`` to the same shape."""


class Norm(Layer):
    """Base class of norms."""

    has_gain = False
    """Whether its parameters multiply the output and start at a size that does not depend on the width, so that a
    factor on the output can be folded into them."""

    def share(self, part: Tensor, whole: Tensor) -> Tensor:
        """What ``part`` contributes to the norm of ``whole``, both ``(..., dim)``, if nothing else in it changed.

        It is linear in ``part``, and shares of parts that add up to ``whole`` add up to its norm less the norm of 0. By
        default each entry is scaled as the norm scales that entry of ``whole``.
        """
        scaled = (self(whole) - self(torch.zeros_like(whole))) / whole
        return part * torch.where(whole == 0, 0.0, scaled)


@norms.register("layer")
class LayerNorm(nn.LayerNorm, Norm):
    """``g ⊙ (x − mean x) / √(var x + ε) + b``, Ba et al. 2016 (1607.06450), eq. 4; ``b`` only with ``bias``."""

    has_gain = True

    def __init__(self, dim: int, bias: bool = True, eps: NotNegative = 1e-5) -> None:
        super().__init__(dim, bias=bias, eps=eps)

    def share(self, part: Tensor, whole: Tensor) -> Tensor:
        """``g ⊙ (p − mean p) / √(var x + ε)``."""
        deviation = (whole.var(dim=-1, keepdim=True, correction=0) + self.eps).sqrt()
        return self.weight * (part - part.mean(dim=-1, keepdim=True)) / deviation


@norms.register("rms")
class RMSNorm(nn.RMSNorm, Norm):
    """``g ⊙ x / √(mean x² + ε)``, Zhang & Sennrich 2019 (1910.07467), eq. 4: no mean subtraction, no bias."""

    has_gain = True

    def __init__(self, dim: int, eps: NotNegative = 1e-6) -> None:
        super().__init__(dim, eps=eps)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(..., dim)`` to the same shape; the gain is cast to x's dtype, as torch's fused kernel requires."""
        return F.rms_norm(x, self.normalized_shape, self.factors.to(x.dtype), self.eps)

    @property
    def factors(self) -> Tensor:
        """What each entry is multiplied by, ``(dim,)``: g."""
        assert self.weight is not None
        return self.weight

    def share(self, part: Tensor, whole: Tensor) -> Tensor:
        """``g ⊙ p / √(mean x² + ε)``."""
        mean_square = whole.square().mean(dim=-1, keepdim=True)
        return self.factors * part / (mean_square + (self.eps or 0.0)).sqrt()


@norms.register("rms_plus_one")
class RMSNormPlusOne(RMSNorm):
    """``(1 + g) ⊙ x / √(mean x² + ε)``, g initially 0: Gemma's form of RMSNorm (Gemma Team 2024, 2408.00118, table 1).

    Weight decay then pulls the gains towards 1 instead of 0.
    """

    has_gain = False

    def reset_parameters(self) -> None:
        """g = 0."""
        assert self.weight is not None
        nn.init.zeros_(self.weight)

    @property
    def factors(self) -> Tensor:
        """What each entry is multiplied by, ``(dim,)``: 1 + g."""
        assert self.weight is not None
        return 1 + self.weight


@norms.register("scale")
class ScaleNorm(Norm):
    """``g x / max(‖x‖, ε)`` with one scalar ``g``, initially √dim: Nguyen & Salazar 2019 (1910.05895), eq. 5."""

    def __init__(self, dim: int, eps: NotNegative = 1e-5) -> None:
        super().__init__()
        self.dim, self.eps = dim, eps
        self.gain = nn.Parameter(torch.empty(()))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """g = √dim, the expected length of a vector whose entries have variance 1."""
        nn.init.constant_(self.gain, float(self.dim) ** 0.5)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(..., dim)`` to the same shape; each output vector has length ``|g|``."""
        return F.normalize(x, dim=-1, eps=self.eps) * self.gain

    def share(self, part: Tensor, whole: Tensor) -> Tensor:
        """``g p / max(‖x‖, ε)``."""
        lengths: Tensor = torch.linalg.vector_norm(whole, dim=-1, keepdim=True)
        return self.gain * part / lengths.clamp(min=self.eps)


class Squashing(Norm):
    """Squashes each entry by itself instead of norming the vector; subclasses define how. ``β`` only with ``bias``.

    Args:
        dim: Width d.
        bias: Whether to add β.
        initial: Initial α.
    """

    def __init__(self, dim: int, bias: bool, initial: float) -> None:
        super().__init__()
        self.initial = initial
        self.steepness = nn.Parameter(torch.empty(()))
        self.weight = nn.Parameter(torch.empty(dim))
        self.bias = nn.Parameter(torch.empty(dim)) if bias else None

    def reset_parameters(self) -> None:
        """α = ``initial``, γ = 1, β = 0."""
        nn.init.constant_(self.steepness, self.initial)
        nn.init.ones_(self.weight)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def squashed(self, x: Tensor) -> Tensor:
        """``x`` ``(..., dim)`` with each entry between −1 and 1."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(..., dim)`` to the same shape."""
        scaled = self.weight * self.squashed(x)
        return scaled if self.bias is None else scaled + self.bias


@norms.register("dynamic_tanh")
class DynamicTanh(Squashing):
    """``γ ⊙ tanh(α x) + β`` with one learned α: Zhu et al. 2025, "Transformers without Normalization" (2503.10622).

    Section 4.

    Args:
        dim: Width d.
        bias: Whether to add β.
        initial: Initial α. The paper uses larger ones for the norm before attention than elsewhere in wide models.
    """

    def __init__(self, dim: int, bias: bool = True, initial: Positive = 0.5) -> None:
        super().__init__(dim, bias, initial)
        self.reset_parameters()

    def squashed(self, x: Tensor) -> Tensor:
        return torch.tanh(self.steepness * x)


@norms.register("dynamic_erf")
class DynamicErf(Squashing):
    """``γ ⊙ erf(α x + s) + β`` with learned scalars α and s, initially 0.5 and 0: Derf, Chen et al. 2025 (2512.10938).

    Args:
        dim: Width d.
        bias: Whether to add β.
        initial: Initial α.
    """

    def __init__(self, dim: int, bias: bool = True, initial: Positive = 0.5) -> None:
        super().__init__(dim, bias, initial)
        self.shift = nn.Parameter(torch.empty(()))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """α = ``initial``, s = 0, γ = 1, β = 0."""
        super().reset_parameters()
        nn.init.zeros_(self.shift)

    def squashed(self, x: Tensor) -> Tensor:
        return torch.erf(self.steepness * x + self.shift)


@norms.register("none")
class NoNorm(nn.Identity, Norm):
    """The identity."""

    def __init__(self) -> None:
        super().__init__()

    def share(self, part: Tensor, whole: Tensor) -> Tensor:
        """The part itself."""
        return part
