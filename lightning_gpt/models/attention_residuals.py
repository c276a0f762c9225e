"""A residual rule in which every branch reads its own weighted mean of all earlier branches' outputs."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from lightning_gpt.models.attention.mixer import Mixer
from lightning_gpt.models.block import Block, blocks
from lightning_gpt.models.context import Context
from lightning_gpt.models.layer import Layer, without_autocast

_OUTPUT = "output of a branch"  # begins the keys under which outputs are carried, with the layer and the half


class DepthAttention(Layer):
    """``h = Σ_i α_i v_i``, ``α_i ∝ exp(q · v_i/√(mean v_i² + ε))``, for several outputs v and a learned q.

    The gain of the RMSNorm of keys is left out: it would only multiply q. Computed in fp32 or better. Intermediate:
    ``weights`` α ``(batch, time, sources)``.

    Args:
        dim: Width of v and q.
        eps: ε.
    """

    def __init__(self, dim: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.eps = eps
        self.query = nn.Parameter(torch.empty(dim))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """``q = 0``: the plain mean (section 5)."""
        nn.init.zeros_(self.query)

    def forward(self, sources: Sequence[Tensor]) -> Tensor:
        """The weighted mean of ``sources``, each ``(batch, time, dim)``, in the precision of the first."""
        dtype = torch.promote_types(sources[0].dtype, torch.float32)
        exact, query = [source.to(dtype) for source in sources], self.query.to(dtype)
        with without_autocast(exact[0]):
            scores = [v @ query * (v.square().mean(dim=-1) + self.eps).rsqrt() for v in exact]
        weights = self.see("weights", torch.stack(scores, dim=-1).softmax(dim=-1))
        mean = weights[..., :1] * exact[0]
        for number, v in enumerate(exact[1:], start=1):
            mean = mean + weights[..., number, None] * v
        return mean.to(sources[0].dtype)


@blocks.register("attention_residuals")
class AttentionResiduals(Block):
    """``h_l = Σ_{i<l} α_{i→l} v_i``, v₀ the embeddings, ``v_i = F_i(LN(h_i))``: each branch attends to those before it.

    Kimi Team 2026, "Attention Residuals" (2603.15031), eq. 1 to 4, the full form. α are a softmax of
    ``w_l · RMSNorm(v_i)`` with a learned pseudo-query w_l, initially 0. The first branch reads the embeddings. A block
    holds the queries of what comes after each of its halves, which for the last is the final norm; so the stream
    between blocks is h, what is read next. It is not a sum: what a block did stays in what later ones read, also where
    the stream after it is edited.

    Args:
        attention: The first branch.
        ffn: The second branch.
        norm: Creates a norm.
        dim: Width of the stream.
        dropout: As in the block.
        layer: The layer's number, from 0.
    """

    keeps_stream = False
    zero_branches_pass = False
    looks_back = True

    def __init__(
        self, attention: Mixer, ffn: Layer | None, norm: Callable[[], nn.Module], dim: int, dropout: float, layer: int
    ) -> None:
        super().__init__(attention, ffn, norm, dropout)
        self.number = layer
        self.attention_reader = DepthAttention(dim)
        self.ffn_reader = None if ffn is None else DepthAttention(dim)

    def init_branches(self, n_layer: int) -> None:
        """No scaling, because nothing is summed."""

    def flops(self, positions: Tensor) -> float:
        """That of the branches, and of the products with all that is read, as if every layer had two branches."""
        read = 2 * self.number + 2
        if self.ffn_reader is not None:
            read += 2 * self.number + 3
        return super().flops(positions) + 4.0 * len(self.attention_reader.query) * read

    def forward(self, x: Tensor, context: Context = Context()) -> Tensor:
        carried = context.shared.carried
        # a block that is run again for its gradient finds what came after it there, too
        of_branches = [key for key in carried if isinstance(key, tuple) and key[0] == _OUTPUT]
        earlier = [carried[key] for key in of_branches if key[1] < self.number]
        sources = [context.shared.initial_stream(x), *earlier]
        mixed = self.attended(self.see("attention_norm", self.attention_norm(x)), context)
        sources.append(carried.made((_OUTPUT, self.number, 0), lambda: mixed))
        x = self.see("after_attention", self.attention_reader(sources))
        if self.ffn_reader is not None:
            fed = self.fed(self.ffn_input(x), context)
            sources.append(carried.made((_OUTPUT, self.number, 1), lambda: fed))
            x = self.ffn_reader(sources)
        return self.see("after_ffn", x)
