"""How a block's branches join the residual stream, besides pre-LN: each rule is its formula.

``F`` stands for either branch, ``H`` for the stream; a block applies its rule to attention, then to the feed-forward
network. What the rules see is named as in :class:`~lightning_gpt.models.block.Block`.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor, nn

from lightning_gpt.errors import CallError
from lightning_gpt.models.attention.multi_head import CausalAttention, MultiHeadAttention
from lightning_gpt.models.block import Block, blocks
from lightning_gpt.models.context import Context


@blocks.register("post")
class PostNorm(Block):
    """``H ← LN(H + F(H))``: Vaswani et al. 2017 (1706.03762), section 3.1, as in GPT-1."""

    ends_normed = True

    def initialise(self, n_layer: int) -> None:
        """Nothing is scaled: the norm after each sum keeps the stream's size."""

    def attention_input(self, x: Tensor, context: Context) -> Tensor:
        """The stream itself."""
        return x

    def forward(self, x: Tensor, context: Context = Context()) -> Tensor:
        x = self.see("attention_norm", self.attention_norm(x + self.attended(x, context)))
        x = self.see("after_attention", x)
        x = self.see("ffn_norm", self.ffn_norm(x + self.fed(x)))
        return self.see("after_ffn", x)


@blocks.register("none")
class NoResidual(Block):
    """``H ← F(LN(H))``: no path around the branches, to study what the path is for (Dong et al. 2021, 2103.03404)."""

    def initialise(self, n_layer: int) -> None:
        """Nothing is scaled: no sum is made."""

    def forward(self, x: Tensor, context: Context = Context()) -> Tensor:
        x = self.see("after_attention", self.attended(self.see("attention_norm", self.attention_norm(x)), context))
        return self.see("after_ffn", self.fed(self.see("ffn_norm", self.ffn_norm(x))))


@blocks.register("deepnorm")
class DeepNorm(Block):
    """``H ← LN(α H + F(H))`` with ``α = (2L)^¼``: Wang et al. 2022 (2203.00555), section 2, for decoders.

    What makes values and branches' outputs starts Xavier-normal with gain ``β = (8L)^−¼``; queries and keys, gain 1.
    """

    ends_normed = True

    def __init__(
        self,
        attention: CausalAttention,
        ffn: nn.Module,
        norm: Callable[[], nn.Module],
        dropout: float,
        n_layer: int,
    ) -> None:
        super().__init__(attention, ffn, norm, dropout)
        self.alpha = (2 * n_layer) ** 0.25

    def initialise(self, n_layer: int) -> None:
        beta = (8 * n_layer) ** -0.25
        for module in self.ffn.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_normal_(module.weight, gain=beta)
        attention = self.attention
        if isinstance(attention, MultiHeadAttention):
            queries_keys = (attention.n_head + attention.n_kv_head) * attention.head_dim
            with torch.no_grad():  # one product makes all three, and each is a matrix of its own to Xavier
                nn.init.xavier_normal_(attention.qkv.weight[: attention.n_head * attention.head_dim])
                nn.init.xavier_normal_(attention.qkv.weight[attention.n_head * attention.head_dim : queries_keys])
                nn.init.xavier_normal_(attention.qkv.weight[queries_keys:], gain=beta)
            nn.init.xavier_normal_(attention.projection.weight, gain=beta)

    def attention_input(self, x: Tensor, context: Context) -> Tensor:
        """The stream itself."""
        return x

    def forward(self, x: Tensor, context: Context = Context()) -> Tensor:
        x = self.see("attention_norm", self.attention_norm(self.alpha * x + self.attended(x, context)))
        x = self.see("after_attention", x)
        x = self.see("ffn_norm", self.ffn_norm(self.alpha * x + self.fed(x)))
        return self.see("after_ffn", x)


@blocks.register("sandwich")
class SandwichNorm(Block):
    """``H ← H + LN'(F(LN(H)))``: Ding et al. 2021 (2105.13290), section 3.3; Kim et al. 2025 (2502.02732): peri-LN."""

    def __init__(
        self, attention: CausalAttention, ffn: nn.Module, norm: Callable[[], nn.Module], dropout: float
    ) -> None:
        super().__init__(attention, ffn, norm, dropout)
        self.attention_out_norm = norm()
        self.ffn_out_norm = norm()

    def forward(self, x: Tensor, context: Context = Context()) -> Tensor:
        mixed = self.attended(self.see("attention_norm", self.attention_norm(x)), context)
        x = self.see("after_attention", x + self.attention_out_norm(mixed))
        fed = self.fed(self.see("ffn_norm", self.ffn_norm(x)))
        return self.see("after_ffn", x + self.ffn_out_norm(fed))


@blocks.register("layerscale")
class LayerScale(Block):
    """``H ← H + γ ⊙ F(LN(H))``, a learned γ for each dimension: Touvron et al. 2021 (2103.17239), section 2.

    Args:
        attention: The first branch.
        ffn: The second.
        norm: Makes a norm.
        dim: Width of the stream.
        dropout: As in the block.
        initial: Where γ starts; the paper takes 0.1 up to 18 layers, 1e-5 up to 24, 1e-6 beyond.
    """

    def __init__(
        self,
        attention: CausalAttention,
        ffn: nn.Module,
        norm: Callable[[], nn.Module],
        dim: int,
        dropout: float,
        initial: float = 0.1,
    ) -> None:
        super().__init__(attention, ffn, norm, dropout)
        self.attention_scale = nn.Parameter(torch.full((dim,), initial))
        self.ffn_scale = nn.Parameter(torch.full((dim,), initial))

    def initialise(self, n_layer: int) -> None:
        """Nothing more is scaled: γ does it."""

    def forward(self, x: Tensor, context: Context = Context()) -> Tensor:
        mixed = self.attended(self.see("attention_norm", self.attention_norm(x)), context)
        x = self.see("after_attention", x + self.attention_scale * mixed)
        fed = self.fed(self.see("ffn_norm", self.ffn_norm(x)))
        return self.see("after_ffn", x + self.ffn_scale * fed)


@blocks.register("rezero")
class ReZero(Block):
    """``H ← H + α F(H)``, a learned number α a branch that starts at 0, and no norm.

    Bachlechner et al. 2020 (2003.04887), eq. 2.
    """

    def __init__(
        self, attention: CausalAttention, ffn: nn.Module, norm: Callable[[], nn.Module], dropout: float
    ) -> None:
        super().__init__(attention, ffn, nn.Identity, dropout)
        self.attention_scale = nn.Parameter(torch.zeros(()))
        self.ffn_scale = nn.Parameter(torch.zeros(()))

    def initialise(self, n_layer: int) -> None:
        """Nothing more is scaled: α does it."""

    def forward(self, x: Tensor, context: Context = Context()) -> Tensor:
        mixed = self.attended(self.see("attention_norm", x), context)
        x = self.see("after_attention", x + self.attention_scale * mixed)
        return self.see("after_ffn", x + self.ffn_scale * self.fed(self.see("ffn_norm", x)))


@blocks.register("parallel")
class Parallel(Block):
    """``H ← H + MHSA(LN(H)) + FFN(LN(H))``, one norm for both: Chowdhery et al. 2022 (2204.02311), section 2."""

    def __init__(
        self, attention: CausalAttention, ffn: nn.Module, norm: Callable[[], nn.Module], dropout: float
    ) -> None:
        super().__init__(attention, ffn, norm, dropout)
        self.ffn_norm = nn.Identity()

    def forward(self, x: Tensor, context: Context = Context()) -> Tensor:
        normed = self.see("attention_norm", self.attention_norm(x))
        mixed = self.see("after_attention", x + self.attended(normed, context))
        return self.see("after_ffn", mixed + self.fed(self.see("ffn_norm", normed)))


class FromEmbeddings(Block, ABC):
    """Pre-LN on the stream with something of the embeddings in it: a variant says how the two are mixed."""

    @abstractmethod
    def mixed(self, x: Tensor, embeddings: Tensor) -> Tensor:
        """What the block works on, of the stream and the embeddings, all ``(batch, time, dim)``."""

    def _mixed(self, x: Tensor, context: Context) -> Tensor:
        return self.mixed(x, context.once("initial stream", lambda: x))

    def attention_input(self, x: Tensor, context: Context) -> Tensor:
        """The norm of the mixture."""
        return super().attention_input(self._mixed(x, context), context)

    def forward(self, x: Tensor, context: Context = Context()) -> Tensor:
        return super().forward(self._mixed(x, context), context)


@blocks.register("initial")
class InitialResidual(FromEmbeddings):
    """``H ← (1 − α) H + α H⁰`` before each pre-LN block, H⁰ the embeddings: no layer is far from what went in.

    The initial residual of GCNII, Chen et al. 2020 (2007.02133), eq. 5, which is for graphs what over-smoothing in
    attention is like; the paper takes α = 0.1 or more.

    Args:
        attention: The first branch.
        ffn: The second.
        norm: Makes a norm.
        dropout: As in the block.
        share: α, from 0 (pre-LN) to 1.
    """

    def __init__(
        self,
        attention: CausalAttention,
        ffn: nn.Module,
        norm: Callable[[], nn.Module],
        dropout: float,
        share: float = 0.1,
    ) -> None:
        super().__init__(attention, ffn, norm, dropout)
        if not 0 <= share <= 1:
            raise CallError(f"residual share is {share}; it must be 0 to 1")
        self.share = share

    def mixed(self, x: Tensor, embeddings: Tensor) -> Tensor:
        return torch.lerp(x, embeddings, self.share)


@blocks.register("embedding_skip")
class EmbeddingSkip(FromEmbeddings):
    """``H ← λ₁ H + λ₂ H⁰`` before each pre-LN block, H⁰ the embeddings, two learned numbers that start at 1 and 0.

    Jordan et al. 2024, "modded-nanogpt" (a record of 124M-parameter runs); ``initial`` with a share that is learned.
    """

    def __init__(
        self, attention: CausalAttention, ffn: nn.Module, norm: Callable[[], nn.Module], dropout: float
    ) -> None:
        super().__init__(attention, ffn, norm, dropout)
        self.stream_shares = nn.Parameter(torch.tensor([1.0, 0.0]))

    def mixed(self, x: Tensor, embeddings: Tensor) -> Tensor:
        own, share = self.stream_shares
        return own * x + share * embeddings  # type: ignore[no-any-return]
