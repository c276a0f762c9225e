"""The position-wise feed-forward networks of a block."""

import torch.nn.functional as F
from torch import Tensor, nn

from lightning_gpt.models.registry import Registry
from lightning_gpt.models.watch import Watched

ffns: Registry[nn.Module] = Registry("ffn", "dim", "bias")
"""Every feed-forward network: ``(batch, time, dim)`` to the same."""


@ffns.register("gelu")
class FeedForward(Watched):
    """``Linear(dim → 4·dim)``, GELU, ``Linear(4·dim → dim)``.

    Vaswani et al. 2017 (1706.03762), eq. 2, with the GELU of Hendrycks & Gimpel 2016 (1606.08415) in the
    tanh approximation that GPT-2 uses. Intermediates: ``hidden`` ``(batch, time, 4·dim)`` after the GELU,
    and ``output`` ``(batch, time, dim)``.
    """

    def __init__(self, dim: int, *, bias: bool) -> None:
        super().__init__()
        self.expand = nn.Linear(dim, 4 * dim, bias=bias)
        self.projection = nn.Linear(4 * dim, dim, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """``(batch, time, dim)`` to ``(batch, time, dim)``."""
        hidden = self.see("hidden", F.gelu(self.expand(x), approximate="tanh"))
        return self.see("output", self.projection(hidden))
