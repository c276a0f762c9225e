"""Position-wise feed-forward networks; gated ones are in :mod:`.gated`, mixtures of experts in :mod:`.moe`."""

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

from lightning_gpt.models.context import Context
from lightning_gpt.models.layer import Cut, Layer, Linear
from lightning_gpt.models.registry import Registry
from lightning_gpt.options import Width

ffns: Registry[Layer] = Registry("ffn", "dim", "bias", optional=True)
"""Every feed-forward network: ``(batch, time, dim)`` to the same shape; ``none`` for an attention-only block."""


@ffns.register("gelu")
class FeedForward(Layer):
    """``GELU(x W_up + b) W_down + b'``.

    Vaswani et al. 2017 (1706.03762), eq. 2, with the GELU of Hendrycks & Gimpel 2016 (1606.08415) in GPT-2's tanh
    approximation. Subclasses override :meth:`activate` to replace the GELU. Intermediates: ``hidden``
    ``(batch, time, hidden)`` after the activation, and ``output`` ``(batch, time, dim)``.

    Args:
        dim: Width of the residual stream.
        bias: Whether the two products have a bias.
        hidden: Hidden width; :meth:`default_hidden` if None.
    """

    pieces: tuple[str, ...] = ("up",)
    """The products of width ``hidden`` that the activation takes, computed as one."""
    can_be_expert = True
    """Whether its matrices and :meth:`activate` are all that it is, so that experts may be of its kind."""

    def __init__(self, dim: int, *, bias: bool, hidden: Width | None = None) -> None:
        super().__init__()
        hidden = self.default_hidden(dim) if hidden is None else hidden
        self.hidden = hidden
        pieces = dict.fromkeys(self.pieces, hidden)
        self.up = Linear(dim, len(pieces) * hidden, bias=bias, maps=("stream", "hidden"), pieces=pieces)
        self.down = Linear(hidden, dim, bias=bias, maps=("hidden", "stream"))
        self.convolution: Layer | None = None

    @staticmethod
    def default_hidden(dim: int) -> int:
        """``4·dim``."""
        return 4 * dim

    @staticmethod
    def activate(products: Tensor) -> Tensor:
        """Map the products ``(..., len(pieces)·hidden)`` to ``(..., hidden)``."""
        return F.gelu(products, approximate="tanh")

    def cut(self) -> Cut | None:
        """By hidden units."""
        return Cut(units=("hidden",), into="up", out="down")

    def projected(self, x: Tensor, context: Context) -> Tensor:
        """What the activation takes: ``(..., len(pieces)·hidden)``."""
        up: Tensor = self.up(x)
        return up if self.convolution is None else self.convolution(up, context)

    def convolve(self, make: Callable[[int], Layer]) -> bool:
        self.convolution = make(self.up.out_features)
        return True

    def forward(self, x: Tensor, context: Context = Context()) -> Tensor:
        """Map ``(..., dim)`` to the same shape."""
        hidden = self.see("hidden", self.activate(self.projected(x, context)))
        return self.see("output", self.down(hidden))


@ffns.register("gelu_erf")
class ExactGELU(FeedForward):
    """``GELU(x W_up + b) W_down + b'`` with ``GELU(x) = x Φ(x)``: Hendrycks & Gimpel 2016 (1606.08415), section 2."""

    @staticmethod
    def activate(products: Tensor) -> Tensor:
        return F.gelu(products)


@ffns.register("relu")
class ReLU(FeedForward):
    """``max(0, x W₁ + b₁) W₂ + b₂``: Vaswani et al. 2017 (1706.03762), eq. 2."""

    @staticmethod
    def activate(products: Tensor) -> Tensor:
        return F.relu(products)


@ffns.register("relu2")
class SquaredReLU(FeedForward):
    """``max(0, x W₁)² W₂``: So et al. 2021, "Primer" (2109.08668), section 4."""

    @staticmethod
    def activate(products: Tensor) -> Tensor:
        return F.relu(products).square()
