"""The position-wise feed-forward networks of a block; a mixture of several is in :mod:`lightning_gpt.models.ffn.moe.mixture`."""

import torch.nn.functional as F
from torch import Tensor, nn

from lightning_gpt.errors import CallError
from lightning_gpt.models.layer import Linear
from lightning_gpt.models.record import Watched
from lightning_gpt.models.registry import Registry

ffns: Registry[nn.Module] = Registry("ffn", "dim", "bias")
"""Every feed-forward network: ``(batch, time, dim)`` to the same."""


@ffns.register("gelu")
class FeedForward(Watched):
    """``Linear(dim → hidden)``, GELU, ``Linear(hidden → dim)``.

    Vaswani et al. 2017 (1706.03762), eq. 2, with the GELU of Hendrycks & Gimpel 2016 (1606.08415) in the
    tanh approximation that GPT-2 uses. Others derive from it and say what stands in the GELU's place in
    :meth:`activate`. Intermediates: ``hidden`` ``(batch, time, hidden)`` after the activation, and ``output``
    ``(batch, time, dim)``.

    Args:
        dim: Width of the residual stream.
        bias: Whether the two products have a bias.
        hidden: Width between them; what :meth:`default_hidden` says when None.
    """

    inputs = 1
    """How many vectors of width ``hidden`` the activation takes."""

    def __init__(self, dim: int, *, bias: bool, hidden: int | None = None) -> None:
        super().__init__()
        hidden = self.default_hidden(dim) if hidden is None else hidden
        if hidden < 1:
            raise CallError(f"ffn hidden is {hidden}; it must be at least 1")
        self.expand = Linear(dim, self.inputs * hidden, bias=bias)
        self.projection = Linear(hidden, dim, bias=bias)

    @staticmethod
    def default_hidden(dim: int) -> int:
        """``4·dim``."""
        return 4 * dim

    def activate(self, expanded: Tensor) -> Tensor:
        """``(..., inputs·hidden)`` to ``(..., hidden)``."""
        return F.gelu(expanded, approximate="tanh")

    def forward(self, x: Tensor) -> Tensor:
        """``(..., dim)`` to ``(..., dim)``."""
        hidden = self.see("hidden", self.activate(self.expand(x)))
        return self.see("output", self.projection(hidden))


@ffns.register("relu")
class ReLU(FeedForward):
    """``max(0, x W₁ + b₁) W₂ + b₂``: Vaswani et al. 2017 (1706.03762), eq. 2 as it stands there."""

    def activate(self, expanded: Tensor) -> Tensor:
        return F.relu(expanded)


@ffns.register("relu2")
class SquaredReLU(FeedForward):
    """``max(0, x W₁)² W₂``: So et al. 2021, "Primer" (2109.08668), section 4."""

    def activate(self, expanded: Tensor) -> Tensor:
        return F.relu(expanded).square()


class GatedFeedForward(FeedForward):
    """``(gate(x W) ⊙ x V) W₂``: Shazeer 2020, "GLU Variants Improve Transformer" (2002.05202), eq. 6; V and W at once.

    By default as many parameters as a network of two products and width 4·dim has: three matrices of width
    ``8/3·dim``, here the nearest multiple of 8.
    """

    inputs = 2

    @staticmethod
    def default_hidden(dim: int) -> int:
        """``8/3·dim``, the nearest multiple of 8."""
        return max(8, 8 * round(dim / 3))


@ffns.register("swiglu")
class SwiGLU(GatedFeedForward):
    """``(SiLU(x W) ⊙ x V) W₂``: Shazeer 2020 (2002.05202), eq. 6, with Swish's β = 1."""

    def activate(self, expanded: Tensor) -> Tensor:
        gate, value = expanded.chunk(2, dim=-1)
        return F.silu(gate) * value


@ffns.register("geglu")
class GeGLU(GatedFeedForward):
    """``(GELU(x W) ⊙ x V) W₂``: Shazeer 2020 (2002.05202), eq. 6, with the tanh approximation of GELU."""

    def activate(self, expanded: Tensor) -> Tensor:
        gate, value = expanded.chunk(2, dim=-1)
        return F.gelu(gate, approximate="tanh") * value
