"""The position-wise feed-forward networks of a block; :mod:`.gated` multiplies two products, :mod:`.moe` has many."""

import torch.nn.functional as F
from torch import Tensor

from lightning_gpt.errors import CallError
from lightning_gpt.models.context import Context
from lightning_gpt.models.layer import Layer, Linear
from lightning_gpt.models.registry import Registry

ffns: Registry[Layer] = Registry("ffn", "dim", "bias", optional=True)
"""Every feed-forward network: ``(batch, time, dim)`` to the same; ``none`` for a block of attention alone."""


def require_hidden(hidden: int) -> None:
    """Refuse a network without hidden activations."""
    if hidden < 1:
        raise CallError(f"ffn hidden is {hidden}; it must be at least 1")


@ffns.register("gelu")
class FeedForward(Layer):
    """``GELU(x W_up + b) W_down + b'``.

    Vaswani et al. 2017 (1706.03762), eq. 2, with the GELU of Hendrycks & Gimpel 2016 (1606.08415) in the
    tanh approximation that GPT-2 uses. Others derive from it and say what stands in the GELU's place in
    :meth:`activate`. Intermediates: ``hidden`` ``(batch, time, hidden)`` after the activation, and ``output``
    ``(batch, time, dim)``.

    Args:
        dim: Width of the residual stream.
        bias: Whether the two products have a bias.
        hidden: Width between them; what :meth:`default_hidden` says when None.
    """

    pieces: tuple[str, ...] = ("up",)
    """The products of width ``hidden`` that the activation takes, made as one."""

    def __init__(self, dim: int, *, bias: bool, hidden: int | None = None) -> None:
        super().__init__()
        hidden = self.default_hidden(dim) if hidden is None else hidden
        require_hidden(hidden)
        self.hidden = hidden
        pieces = dict.fromkeys(self.pieces, hidden)
        self.up = Linear(dim, len(pieces) * hidden, bias=bias, maps=("stream", "hidden"), pieces=pieces)
        self.down = Linear(hidden, dim, bias=bias, maps=("hidden", "stream"))

    @staticmethod
    def default_hidden(dim: int) -> int:
        """``4·dim``."""
        return 4 * dim

    @staticmethod
    def activate(up: Tensor) -> Tensor:
        """The products ``(..., len(pieces)·hidden)`` to ``(..., hidden)``."""
        return F.gelu(up, approximate="tanh")

    def forward(self, x: Tensor, context: Context = Context()) -> Tensor:
        """``(..., dim)`` to ``(..., dim)``."""
        hidden = self.see("hidden", self.activate(self.up(x)))
        return self.see("output", self.down(hidden))


@ffns.register("relu")
class ReLU(FeedForward):
    """``max(0, x W₁ + b₁) W₂ + b₂``: Vaswani et al. 2017 (1706.03762), eq. 2 as it stands there."""

    @staticmethod
    def activate(up: Tensor) -> Tensor:
        return F.relu(up)


@ffns.register("relu2")
class SquaredReLU(FeedForward):
    """``max(0, x W₁)² W₂``: So et al. 2021, "Primer" (2109.08668), section 4."""

    @staticmethod
    def activate(up: Tensor) -> Tensor:
        return F.relu(up).square()
