"""A residual rule in which every branch reads its own weighted mean of all earlier branches' outputs."""

from collections.abc import Callable, Hashable, Sequence
from typing import Annotated, Any, TypeGuard

import torch
from torch import Tensor, nn

from lightning_gpt.models.attention.mixer import Mixer
from lightning_gpt.models.block import Block, blocks
from lightning_gpt.models.context import Context, Once
from lightning_gpt.models.layer import Layer, without_autocast
from lightning_gpt.options import Range

_OUTPUT = "output of a branch"  # begins the keys under which outputs are carried, with the layer and the half


class DepthAttention(Layer):
    """``h = Σ_i α_i v_i``, ``α_i ∝ exp(q · v_i/√(mean v_i² + ε))``, for several outputs v and a learned q.

    The gain of the RMSNorm of keys is left out: it would only multiply q. Computed in fp32 or better. Intermediate:
    ``weights`` α ``(batch, time, sources)``.

    Args:
        dim: Width of v and q.
        eps: ε.
    """

    no_mup = "attention_residuals makes scores of the stream with vectors, whose rates stay as they are"

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
            if not self.asked_for("weights"):
                mean: Tensor = _Read.apply(query, self.eps, *exact)  # type: ignore[no-untyped-call]
                return mean.to(sources[0].dtype)
            scores = [v @ query * (v.square().mean(dim=-1) + self.eps).rsqrt() for v in exact]
            weights = self.see("weights", torch.stack(scores, dim=-1).softmax(dim=-1))
            mean = torch.stack([weights[..., number, None] * v for number, v in enumerate(exact)]).sum(dim=0)
        return mean.to(sources[0].dtype)


class _Read(torch.autograd.Function):
    """The weighted mean of sources ``(..., dim)``, from a query ``(dim,)`` and ε.

    There are as many sources as layers, and every layer reads all before it. So the terms of the mean and of a source's
    gradient are added in place: as operations of their own they take twice as long, most of it for memory.
    """

    @staticmethod
    def forward(ctx: Any, query: Tensor, eps: float, *sources: Tensor) -> Tensor:
        products = torch.stack([v @ query for v in sources], dim=-1)
        squares = torch.stack([torch.linalg.vecdot(v, v) for v in sources], dim=-1)
        inverse = squares.div_(len(query)).add_(eps).rsqrt_()  # 1 / RMS
        weights = (products * inverse).softmax(dim=-1)
        ctx.save_for_backward(query, products, inverse, weights, *sources)
        mean = weights[..., :1] * sources[0]
        for number, v in enumerate(sources[1:], start=1):
            mean.addcmul_(weights[..., number, None], v)
        return mean

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        query, products, inverse, weights, *sources = ctx.saved_tensors
        (gradient,) = grad_outputs
        of_weights = torch.stack([torch.linalg.vecdot(gradient, v) for v in sources], dim=-1)
        of_scores = weights * (of_weights - (weights * of_weights).sum(dim=-1, keepdim=True))
        of_products = of_scores * inverse
        along = -of_products * products * inverse.square() / len(query)  # times v: through the RMS
        of_query, of_sources = torch.zeros_like(query), []
        for number, v in enumerate(sources):
            of_query += of_products[..., number].flatten() @ v.flatten(0, -2)
            of_source = weights[..., number, None] * gradient
            of_source.addcmul_(along[..., number, None], v).addcmul_(of_products[..., number, None], query)
            of_sources.append(of_source)
        return of_query, None, *of_sources


@blocks.register("attention_residuals")
class AttentionResiduals(Block):
    """``h_l = Σ_i α_{i→l} v_i``, v₀ the embeddings, ``v_i = F_i(LN(h_i))``: each branch attends to those before it.

    Kimi Team 2026, "Attention Residuals" (2603.15031), eq. 1 to 4, the full form. α are a softmax of
    ``w_l · RMSNorm(v_i)`` with a learned pseudo-query w_l, initially 0. The first branch reads the embeddings. With
    ``group`` it is their block form: the outputs of so many layers are added up to one v. A branch then reads the
    embeddings, the sums of the groups before its own, and what its own has added up so far, unless it is the first.

    A block holds the queries of what comes after each of its halves, which for the last is the final norm; so the
    stream between blocks is h, what is read next. It is not a sum: what a block did stays in what later ones read, also
    where the stream after it is edited.

    Args:
        attention: The first branch.
        ffn: The second branch.
        norm: Creates a norm.
        dim: Width of the stream.
        dropout: As in the block.
        layer: The layer's number, from 0.
        group: Number of layers whose outputs are added up; None to keep every output apart. According to the paper,
            eight groups in all keep most of what the full form gains.
    """

    keeps_stream = False
    zero_branches_pass = False
    looks_back = True

    def __init__(
        self,
        attention: Mixer,
        ffn: Layer | None,
        norm: Callable[[], nn.Module],
        dim: int,
        dropout: float,
        layer: int,
        group: Annotated[int, Range(1)] | None = None,
    ) -> None:
        super().__init__(attention, ffn, norm, dropout)
        self.number, self.group = layer, group
        self.attention_reader = DepthAttention(dim)
        self.ffn_reader = None if ffn is None else DepthAttention(dim)

    def init_branches(self, n_layer: int) -> None:
        """No scaling: what is read is a mean."""

    def written(self, output: Tensor) -> Tensor | None:
        """None: what later branches read of it depends on the token."""
        return None

    def flops(self, positions: Tensor) -> float:
        """That of the branches, and of the products with all that is read, as if every layer had two branches."""
        halves = 1 if self.ffn_reader is None else 2
        if self.group is None:
            read = sum(2 * self.number + 1 + half for half in range(1, halves + 1))
        else:
            read = halves * (self.number // self.group + 2)
        return super().flops(positions) + 4.0 * len(self.attention_reader.query) * read

    def passes_on(self, key: Hashable) -> bool:
        """Of a group's sums, the whole one, or the one so far."""
        return not _is_output(key) or key[1] == self.number or self._is_whole(key)

    def forward(self, x: Tensor, context: Context = Context()) -> Tensor:
        carried = context.shared.carried
        # a block that is run again for its gradient finds what came after it there, too
        earlier = [key for key in carried if _is_output(key) and key[1] < self.number]
        earlier = [key for key in earlier if key[1] == self.number - 1 or self._is_whole(key)]
        goes_on = bool(earlier) and not self._is_whole(earlier[-1])
        sources = [context.shared.initial_stream(x), *(carried[key] for key in earlier)]
        mixed = self.attended(self.see("attention_norm", self.attention_norm(x)), context)
        self._add(mixed, 0, goes_on, sources, carried)
        x = self.see("after_attention", self.attention_reader(sources))
        if self.ffn_reader is not None:
            fed = self.fed(self.ffn_input(x), context)
            self._add(fed, 1, self.group is not None, sources, carried)
            x = self.ffn_reader(sources)
        return self.see("after_ffn", x)

    def _is_whole(self, key: tuple[str, int, int]) -> bool:
        """Whether no later output is added to the one under a key."""
        return self.group is None or (key[1] + 1) % self.group == 0

    def _add(self, output: Tensor, half: int, joins: bool, sources: list[Tensor], carried: Once[Tensor]) -> None:
        """Add what a branch puts out to the sources: to the last of them if it joins that."""
        if joins:
            output = sources.pop() + output
        if self.group is None or half == 1 or self.ffn_reader is None:
            made = output
            output = carried.made((_OUTPUT, self.number, half), lambda: made)
        sources.append(output)


def _is_output(key: Hashable) -> TypeGuard[tuple[str, int, int]]:
    return isinstance(key, tuple) and key[0] == _OUTPUT
