"""Feed-forward networks whose hidden activations are gated by a second product."""

import torch.nn.functional as F
from torch import Tensor

from lightning_gpt.models.ffn.dense import FeedForward, ffns


class GatedFeedForward(FeedForward):
    """``(act(x W_gate) ⊙ x W_up) W_down``: Shazeer 2020, "GLU Variants Improve Transformer" (2002.05202), eq. 6.

    Both input products are computed at once. By default the three matrices have width ``8/3·dim``, rounded to a
    multiple of 8, so that there are as many parameters as in an ungated network of width 4·dim.
    """

    pieces = ("gate", "up")

    @staticmethod
    def default_hidden(dim: int) -> int:
        """``8/3·dim``, rounded to a multiple of 8."""
        return max(8, 8 * round(dim / 3))


@ffns.register("swiglu")
class SwiGLU(GatedFeedForward):
    """``(SiLU(x W_gate) ⊙ x W_up) W_down``: Shazeer 2020 (2002.05202), eq. 6, with Swish's β = 1."""

    @staticmethod
    def activate(up: Tensor) -> Tensor:
        gate, value = up.chunk(2, dim=-1)
        return F.silu(gate) * value


@ffns.register("geglu")
class GeGLU(GatedFeedForward):
    """``(GELU(x W_gate) ⊙ x W_up) W_down``: Shazeer 2020 (2002.05202), eq. 6, with the tanh approximation of GELU."""

    @staticmethod
    def activate(up: Tensor) -> Tensor:
        gate, value = up.chunk(2, dim=-1)
        return F.gelu(gate, approximate="tanh") * value
