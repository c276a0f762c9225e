"""A residual stream on the unit sphere: nGPT's update."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_gpt.models.attention.mixer import Mixer
from lightning_gpt.models.block import Block, blocks
from lightning_gpt.models.context import Context
from lightning_gpt.models.layer import Layer
from lightning_gpt.options import ShareAboveZero


@blocks.register("spherical")
class SphericalUpdate(Block):
    """``H ← Norm(H + α ⊙ (Norm(F(H)) − H))``, Norm to length 1, with a learned step α ≥ 0 per dimension and branch.

    Loshchilov et al. 2024, "nGPT: Normalized Transformer with Representation Learning on the Hypersphere"
    (2410.01131), eq. 10 and 11. There is no other norm: ``norm`` has no effect in the blocks, and none follows them.
    α is ``|a| · initial · √dim`` of a learned a that starts at 1/√dim, so that the optimizer moves it as it moves the
    entries of unit vectors (section 2.5).

    Args:
        attention: The first branch.
        ffn: The second branch.
        norm: Ignored.
        dim: Width of the stream.
        dropout: As in the block.
        initial: Initial α; the paper uses 0.05, about one over the number of layers.
    """

    ends_normed = True
    norms_input = False
    keeps_stream = False
    adds_updates = False
    zero_branches_pass = False
    trains_from_zero = False

    def __init__(
        self,
        attention: Mixer,
        ffn: Layer | None,
        norm: Callable[[], nn.Module],
        dim: int,
        dropout: float,
        initial: ShareAboveZero = 0.05,
    ) -> None:
        super().__init__(attention, ffn, nn.Identity, dropout)
        self.initial, self.unit = initial, dim**-0.5
        self.attention_step = nn.Parameter(torch.empty(dim))
        self.ffn_step = None if ffn is None else nn.Parameter(torch.empty(dim))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """a = 1/√dim."""
        for step in (self.attention_step, self.ffn_step):
            if step is not None:
                nn.init.constant_(step, self.unit)

    def init_branches(self, n_layer: int) -> None:
        """No scaling: what a branch gives is normed."""

    def written(self, output: Tensor) -> Tensor | None:
        """None: it is normed."""
        return None

    def _towards(self, x: Tensor, branch: Tensor, step: Tensor) -> Tensor:
        alpha = step.abs() * (self.initial / self.unit)
        return F.normalize(x + alpha * (branch - x), dim=-1)

    def mix(self, x: Tensor, context: Context) -> Tensor:
        branch = self.see("attention_norm", F.normalize(self.attended(x, context), dim=-1))
        return self._towards(x, branch, self.attention_step)

    def feed(self, x: Tensor, context: Context) -> Tensor:
        assert self.ffn_step is not None
        branch = self.see("ffn_norm", F.normalize(self.fed(x, context), dim=-1))
        return self._towards(x, branch, self.ffn_step)
