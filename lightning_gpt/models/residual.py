"""The rules other than pre-LN by which a block's branches join the residual stream.

``F`` stands for either branch, ``H`` for the stream; a block applies its rule to attention, then to the feed-forward
network. Intermediates are named as in :class:`~lightning_gpt.models.block.Block`.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Annotated

import torch
from torch import Tensor, nn

from lightning_gpt.models.attention.mixer import Mixer
from lightning_gpt.models.block import Block, blocks
from lightning_gpt.models.context import Context
from lightning_gpt.models.layer import Layer, all_matrices
from lightning_gpt.options import Range, Share


class NormAfterSum(Block):
    """Rules that norm the sum of stream and branch, so that a block's output is already normed."""

    ends_normed = True
    norms_input = False
    keeps_stream = False
    adds_updates = False
    zero_branches_pass = False
    stream_factor = 1.0
    """α in ``H ← LN(α H + F(H))``."""

    def attention_input(self, x: Tensor, context: Context) -> Tensor:
        """The stream itself."""
        return x

    def written(self, output: Tensor) -> Tensor | None:
        """None: it is normed together with the stream."""
        return None

    def mix(self, x: Tensor, context: Context) -> Tensor:
        summed = self.stream_factor * x + self.attended(x, context)
        return self.see("attention_norm", self.attention_norm(summed))

    def feed(self, x: Tensor, context: Context) -> Tensor:
        assert self.ffn_norm is not None
        return self.see("ffn_norm", self.ffn_norm(self.stream_factor * x + self.fed(x, context)))


@blocks.register("post")
class PostNorm(NormAfterSum):
    """``H ← LN(H + F(H))``: Vaswani et al. 2017 (1706.03762), section 3.1, as in GPT-1."""

    def init_branches(self, n_layer: int) -> None:
        """No scaling: the norm after each sum keeps the stream's size."""


@blocks.register("deepnorm")
class DeepNorm(NormAfterSum):
    """``H ← LN(α H + F(H))`` with ``α = (2L)^¼``: Wang et al. 2022 (2203.00555), section 2, for decoders.

    Value, output and feed-forward weights start Xavier-normal with gain ``β = (8L)^−¼``; queries and keys with gain 1.
    """

    knows_depth = True

    def __init__(
        self, attention: Mixer, ffn: Layer | None, norm: Callable[[], nn.Module], dropout: float, n_layer: int
    ) -> None:
        super().__init__(attention, ffn, norm, dropout)
        self.stream_factor = (2 * n_layer) ** 0.25

    def init_branches(self, n_layer: int) -> None:
        beta = (8 * n_layer) ** -0.25
        for branch, of_scores in ((self.ffn, ()), (self.attention, ("q", "k"))):
            hidden = [] if branch is None else [matrix for matrix in all_matrices(branch) if matrix.is_hidden]
            for matrix in hidden:
                # a product may concatenate several matrices; Xavier applies to each separately
                for name, part in matrix.each_piece():
                    nn.init.xavier_normal_(part, gain=1.0 if name in of_scores else beta)


@blocks.register("none")
class NoResidual(Block):
    """``H ← F(LN(H))``: no residual path, to study what that path does (Dong et al. 2021, 2103.03404)."""

    keeps_stream = False
    adds_updates = False
    zero_branches_pass = False
    trains_from_zero = False

    def init_branches(self, n_layer: int) -> None:
        """No scaling, because nothing is summed."""

    def mix(self, x: Tensor, context: Context) -> Tensor:
        return self.attended(self.see("attention_norm", self.attention_norm(x)), context)

    def feed(self, x: Tensor, context: Context) -> Tensor:
        return self.fed(self.ffn_input(x), context)


@blocks.register("sandwich")
class SandwichNorm(Block):
    """``H ← H + LN'(F(LN(H)))``: Ding et al. 2021 (2105.13290), section 3.3; Kim et al. 2025 (2502.02732): peri-LN."""

    zero_branches_pass = False

    def __init__(self, attention: Mixer, ffn: Layer | None, norm: Callable[[], nn.Module], dropout: float) -> None:
        super().__init__(attention, ffn, norm, dropout)
        self.attention_out_norm = norm()
        self.ffn_out_norm = None if ffn is None else norm()

    def written(self, output: Tensor) -> Tensor | None:
        """None: it is normed."""
        return None

    def mix(self, x: Tensor, context: Context) -> Tensor:
        mixed = self.attended(self.see("attention_norm", self.attention_norm(x)), context)
        return x + self.attention_out_norm(mixed)  # type: ignore[no-any-return]

    def feed(self, x: Tensor, context: Context) -> Tensor:
        assert self.ffn_out_norm is not None
        return x + self.ffn_out_norm(self.fed(self.ffn_input(x), context))  # type: ignore[no-any-return]


@blocks.register("normed_branches")
class NormedBranches(Block):
    """``H ← H + LN(F(H))``: the norm of a branch comes after it, and none before.

    Liu et al. 2021, "Swin Transformer V2" (2111.09883), section 3.2, "res-post-norm"; OLMo et al. 2024 (2501.00656),
    section 2.1, "reordered norm".
    """

    norms_input = False
    zero_branches_pass = False

    def attention_input(self, x: Tensor, context: Context) -> Tensor:
        """The stream itself."""
        return x

    def written(self, output: Tensor) -> Tensor | None:
        """None: it is normed."""
        return None

    def mix(self, x: Tensor, context: Context) -> Tensor:
        return x + self.see("attention_norm", self.attention_norm(self.attended(x, context)))

    def feed(self, x: Tensor, context: Context) -> Tensor:
        assert self.ffn_norm is not None
        return x + self.see("ffn_norm", self.ffn_norm(self.fed(x, context)))


class ScaledBranches(Block, ABC):
    """Rules with a learned factor on each branch; both factors have the same shape and initial value."""

    def __init__(
        self,
        attention: Mixer,
        ffn: Layer | None,
        norm: Callable[[], nn.Module],
        dropout: float,
        shape: tuple[int, ...],
        initial: float,
    ) -> None:
        super().__init__(attention, ffn, norm, dropout)
        self.initial = initial
        self.attention_scale = nn.Parameter(torch.empty(shape))
        self.ffn_scale = None if ffn is None else nn.Parameter(torch.empty(shape))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Set the factors to their initial value."""
        for scale in (self.attention_scale, self.ffn_scale):
            if scale is not None:
                nn.init.constant_(scale, self.initial)

    def init_branches(self, n_layer: int) -> None:
        """No further scaling: the factors do it."""

    def written(self, output: Tensor) -> Tensor | None:
        """The output times the learned factors."""
        return self.attention_scale * output

    def mix(self, x: Tensor, context: Context) -> Tensor:
        normed = self.see("attention_norm", self.attention_norm(x))
        return x + self.attention_scale * self.attended(normed, context)

    def feed(self, x: Tensor, context: Context) -> Tensor:
        assert self.ffn_scale is not None
        return x + self.ffn_scale * self.fed(self.ffn_input(x), context)


@blocks.register("layerscale")
class LayerScale(ScaledBranches):
    """``H ← H + γ ⊙ F(LN(H))``, with a learned γ per dimension: Touvron et al. 2021 (2103.17239), section 2.

    Args:
        attention: The first branch.
        ffn: The second branch.
        norm: Creates a norm.
        dim: Width of the stream.
        dropout: As in the block.
        initial: Initial γ; the paper uses 0.1 for up to 18 layers, 1e-5 for up to 24, 1e-6 beyond.
    """

    def __init__(
        self,
        attention: Mixer,
        ffn: Layer | None,
        norm: Callable[[], nn.Module],
        dim: int,
        dropout: float,
        initial: Share = 0.1,
    ) -> None:
        super().__init__(attention, ffn, norm, dropout, (dim,), initial)


@blocks.register("rezero")
class ReZero(ScaledBranches):
    """``H ← H + α F(H)``, with a learned scalar α per branch, initially 0, and no norm.

    Bachlechner et al. 2020 (2003.04887), eq. 2.
    """

    trains_from_zero = False

    def __init__(self, attention: Mixer, ffn: Layer | None, norm: Callable[[], nn.Module], dropout: float) -> None:
        super().__init__(attention, ffn, nn.Identity, dropout, (), 0.0)

    def zero_branches(self) -> None:
        """α = 0."""
        self.reset_parameters()


@blocks.register("parallel")
class Parallel(Block):
    """``H ← H + MHSA(LN(H)) + FFN(LN'(H))``: Chowdhery et al. 2022 (2204.02311), section 2, where both have one norm.

    Args:
        attention: The first branch.
        ffn: The second branch.
        norm: Creates a norm.
        dropout: As in the block.
        n_norm: 1 if ``LN'`` is ``LN``; 2 if it is a norm of its own, as in GPT-NeoX (Black et al. 2022, 2204.06745,
            section 2.1).
    """

    def __init__(
        self,
        attention: Mixer,
        ffn: Layer | None,
        norm: Callable[[], nn.Module],
        dropout: float,
        n_norm: Annotated[int, Range(1, 2)] = 1,
    ) -> None:
        super().__init__(attention, ffn, norm, dropout)
        if n_norm == 1:
            self.ffn_norm = None

    def forward(self, x: Tensor, context: Context = Context()) -> Tensor:
        normed = self.see("attention_norm", self.attention_norm(x))
        mixed = self.see("after_attention", x + self.attended(normed, context))
        if self.ffn is None:
            return self.see("after_ffn", mixed)
        own = normed if self.ffn_norm is None else self.ffn_norm(x)
        return self.see("after_ffn", mixed + self.fed(self.see("ffn_norm", own), context))


class FromEmbeddings(Block, ABC):
    """Pre-LN on a mixture of the stream and the embeddings; subclasses define the mixture."""

    keeps_stream = False
    zero_branches_pass = False

    @abstractmethod
    def mixed(self, x: Tensor, embeddings: Tensor) -> Tensor:
        """The block's input, a mixture of the stream and the embeddings; all are ``(batch, time, dim)``."""

    def _mixed(self, x: Tensor, context: Context) -> Tensor:
        return self.mixed(x, context.shared.initial_stream(x))

    def attention_input(self, x: Tensor, context: Context) -> Tensor:
        """The norm of the mixture."""
        return super().attention_input(self._mixed(x, context), context)

    def forward(self, x: Tensor, context: Context = Context()) -> Tensor:
        return super().forward(self._mixed(x, context), context)


@blocks.register("initial")
class InitialResidual(FromEmbeddings):
    """``H ← (1 − α) H + α H⁰`` before each pre-LN block, H⁰ the embeddings: every layer stays close to the input.

    The initial residual of GCNII, Chen et al. 2020 (2007.02133), eq. 5, which counters over-smoothing in graph
    networks, the analogue of over-smoothing in attention. The paper uses α = 0.1 or more.

    Args:
        attention: The first branch.
        ffn: The second branch.
        norm: Creates a norm.
        dropout: As in the block.
        share: α, from 0 (pre-LN) to 1.
    """

    def __init__(
        self,
        attention: Mixer,
        ffn: Layer | None,
        norm: Callable[[], nn.Module],
        dropout: float,
        share: Share = 0.1,
    ) -> None:
        super().__init__(attention, ffn, norm, dropout)
        self.share = share

    def mixed(self, x: Tensor, embeddings: Tensor) -> Tensor:
        return torch.lerp(x, embeddings, self.share)


@blocks.register("embedding_skip")
class EmbeddingSkip(FromEmbeddings):
    """``H ← λ₁ H + λ₂ H⁰`` before each pre-LN block, H⁰ the embeddings, with learned scalars initialised to 1 and 0.

    Jordan et al. 2024, "modded-nanogpt" (a record of 124M-parameter runs); like ``initial``, with learned shares.
    """

    def __init__(self, attention: Mixer, ffn: Layer | None, norm: Callable[[], nn.Module], dropout: float) -> None:
        super().__init__(attention, ffn, norm, dropout)
        self.stream_shares = nn.Parameter(torch.empty(2))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """λ₁ = 1, λ₂ = 0: pre-LN."""
        with torch.no_grad():
            self.stream_shares[0], self.stream_shares[1] = 1.0, 0.0

    def mixed(self, x: Tensor, embeddings: Tensor) -> Tensor:
        own, share = self.stream_shares
        return own * x + share * embeddings  # type: ignore[no-any-return]
