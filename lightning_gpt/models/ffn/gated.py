"""Feed-forward networks whose hidden activations are gated by a second product."""

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_gpt.models.ffn.dense import FeedForward, ffns

CLAMP, SHARPNESS = 7.0, 1.702
"""The constants of ``clamped_swiglu``."""


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
    def activate(products: Tensor) -> Tensor:
        gate, up = products.chunk(2, dim=-1)
        return F.silu(gate) * up


@ffns.register("clamped_swiglu")
class ClampedSwiGLU(GatedFeedForward):
    """``((u + 1) ⊙ g σ(1.702 g)) W_down``, ``g = min(x W_gate + b, 7)`` and ``u`` is ``x W_up + b'`` within ±7.

    OpenAI 2025 (gpt-oss, 2508.10925), section 2.2: "unconventional [...] clamping and a residual connection"; the
    constants are those of its code. ``g σ(1.702 g)`` is the sigmoid approximation of GELU (1606.08415, section 2).
    """

    @staticmethod
    def activate(products: Tensor) -> Tensor:
        gate, up = products.chunk(2, dim=-1)
        gate, up = gate.clamp(max=CLAMP), up.clamp(-CLAMP, CLAMP)
        return (up + 1) * gate * torch.sigmoid(SHARPNESS * gate)


@ffns.register("geglu")
class GeGLU(GatedFeedForward):
    """``(GELU(x W_gate) ⊙ x W_up) W_down``: Shazeer 2020 (2002.05202), eq. 6, with the tanh approximation of GELU."""

    @staticmethod
    def activate(products: Tensor) -> Tensor:
        gate, up = products.chunk(2, dim=-1)
        return F.gelu(gate, approximate="tanh") * up
