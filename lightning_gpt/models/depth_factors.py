"""Residual rules with a fixed factor, which may depend on depth."""

from collections.abc import Callable

from torch import Tensor, nn

from lightning_gpt.models.attention.mixer import Mixer
from lightning_gpt.models.block import Block, blocks
from lightning_gpt.models.context import Context
from lightning_gpt.models.layer import Layer
from lightning_gpt.options import Depth, Positive


@blocks.register("scaled_norms")
class ScaledNorms(Block):
    """``H ← H + F(LN(H) / √l)`` in layer l, counted from 1: LayerNorm scaling, against a stream that grows with depth.

    Sun et al. 2025, "The Curse of Depth in Large Language Models" (2502.05795), eq. 10.

    Args:
        attention: The first branch.
        ffn: The second branch.
        norm: Creates a norm.
        dropout: As in the block.
        layer: The layer's number, from 0.
        scaled_start: Whether output projections also start scaled by 1/√(2·n_layer); the paper leaves that out.
    """

    def __init__(
        self,
        attention: Mixer,
        ffn: Layer | None,
        norm: Callable[[], nn.Module],
        dropout: float,
        layer: int,
        scaled_start: bool = False,
    ) -> None:
        super().__init__(attention, ffn, norm, dropout)
        self.norm_factor, self.scaled_start = (layer + 1) ** -0.5, scaled_start

    def init_branches(self, n_layer: int) -> None:
        if self.scaled_start:
            super().init_branches(n_layer)

    def attention_input(self, x: Tensor, context: Context) -> Tensor:
        """The norm of the stream over √l."""
        return self.norm_factor * self.attention_norm(x)  # type: ignore[no-any-return]

    def ffn_input(self, x: Tensor) -> Tensor:
        assert self.ffn_norm is not None
        return self.see("ffn_norm", self.norm_factor * self.ffn_norm(x))

    def mix(self, x: Tensor, context: Context) -> Tensor:
        return x + self.attended(self.see("attention_norm", self.attention_input(x, context)), context)


@blocks.register("multiplied")
class MultipliedBranches(Block):
    """``H ← H + m F(LN(H))`` with a fixed m, as in Granite's models.

    Shen et al. 2024, "Power Scheduler" (2408.13359), whose models are parametrised as in μP with multipliers.

    Args:
        attention: The first branch.
        ffn: The second branch.
        norm: Creates a norm.
        dropout: As in the block.
        factor: m; Granite 3's by default.
    """

    def __init__(
        self,
        attention: Mixer,
        ffn: Layer | None,
        norm: Callable[[], nn.Module],
        dropout: float,
        factor: Positive = 0.22,
    ) -> None:
        super().__init__(attention, ffn, norm, dropout)
        self.branch_factor = factor

    def written(self, output: Tensor) -> Tensor | None:
        """The output times the factor."""
        return self.branch_factor * output

    def mix(self, x: Tensor, context: Context) -> Tensor:
        normed = self.see("attention_norm", self.attention_norm(x))
        return x + self.branch_factor * self.attended(normed, context)

    def feed(self, x: Tensor, context: Context) -> Tensor:
        return x + self.branch_factor * self.fed(self.ffn_input(x), context)


@blocks.register("depth_scaled")
class DepthScaled(MultipliedBranches):
    """``H ← H + (L₀/L) F(LN(H))``, L₀ the depth ``base``: CompleteP, whose learning rate holds at every depth.

    Dey et al. 2025, "Don't be lazy: CompleteP enables compute-efficient deep transformers" (2505.01618), table 1 with
    α = 1: the branches' factor takes over all of the depth, so rates and starts of the weights are those of a model of
    L₀ layers at every depth. The paper also divides AdamW's ε by L/L₀, which is not done here.

    Args:
        attention: The first branch.
        ffn: The second branch.
        norm: Creates a norm.
        dropout: As in the block.
        n_layer: L.
        base: L₀, the depth at which the rates were tuned; there it is pre-LN.
    """

    knows_depth = True
    zero_branches_pass = False  # another depth changes the factor of the blocks that are there

    def __init__(
        self,
        attention: Mixer,
        ffn: Layer | None,
        norm: Callable[[], nn.Module],
        dropout: float,
        n_layer: int,
        base: Depth = 2,
    ) -> None:
        super().__init__(attention, ffn, norm, dropout, base / n_layer)
        self.base = base

    def init_branches(self, n_layer: int) -> None:
        """As at the depth ``base``."""
        super().init_branches(self.base)
