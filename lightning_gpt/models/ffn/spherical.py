"""A gated feed-forward network between unit vectors: nGPT's."""

import torch
from torch import Tensor, nn

from lightning_gpt.models.context import Context
from lightning_gpt.models.ffn.dense import ffns
from lightning_gpt.models.ffn.gated import SwiGLU
from lightning_gpt.models.layer import Cut
from lightning_gpt.options import Width


@ffns.register("spherical_swiglu")
class SphericalSwiGLU(SwiGLU):
    """``(SiLU(√dim s_v ⊙ x W_gate) ⊙ s_u ⊙ x W_up) W_down``, s_u and s_v learned per hidden unit, initially 1.

    Loshchilov et al. 2024, "nGPT" (2410.01131), eq. 20 and 21. Of unit vectors, a product has entries of about 1/√dim,
    for which SiLU is nearly linear; hence √dim.
    """

    can_be_expert = False

    def __init__(self, dim: int, *, bias: bool, hidden: Width | None = None) -> None:
        super().__init__(dim, bias=bias, hidden=hidden)
        self.root = dim**0.5
        self.gate_scale = nn.Parameter(torch.empty(self.hidden))
        self.up_scale = nn.Parameter(torch.empty(self.hidden))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """s_u = s_v = 1."""
        nn.init.ones_(self.gate_scale)
        nn.init.ones_(self.up_scale)

    def projected(self, x: Tensor, context: Context) -> Tensor:
        scales = torch.cat([self.root * self.gate_scale, self.up_scale])
        products = super().projected(x, context)
        return products * scales.to(products.dtype)

    def cut(self) -> Cut | None:
        return Cut(units=("hidden",), into="up", out="down", along={"gate_scale": 0, "up_scale": 0})
