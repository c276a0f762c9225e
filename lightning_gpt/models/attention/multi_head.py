"""Multi-head causal self-attention."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from lightning_gpt.errors import CallError
from lightning_gpt.models.attention.formula import Backend, CausalAttention
from lightning_gpt.models.attention.head_matrices import HeadMatrices, split_heads
from lightning_gpt.models.attention.mask import columns_counted
from lightning_gpt.models.attention.mixer import attentions
from lightning_gpt.models.context import Context
from lightning_gpt.models.layer import Cut, Layer, Linear
from lightning_gpt.models.norms import NoNorm, norms
from lightning_gpt.models.positions.rotary import Base, own_rotary
from lightning_gpt.models.positions.scheme import Positions
from lightning_gpt.models.registry import Given
from lightning_gpt.options import Heads, Positive, Width


@attentions.register("full")
class MultiHeadAttention(CausalAttention):
    """Multi-head causal self-attention, Vaswani et al. 2017, section 3.2.2, with one product for Q, K and V.

    Intermediates besides those of :class:`CausalAttention`: ``q`` ``(batch, n_head, time, head_dim)``, ``k`` and ``v``
    ``(batch, n_kv_head, time, head_dim)``, as they enter the scores, and ``output`` ``(batch, time, dim)``, after the
    output projection.

    Args:
        dim: Width of the residual stream.
        n_head: Number of heads.
        bias: Whether the projections have a bias.
        dropout: Probability of dropping an attention weight in training.
        backend: How attention is computed.
        qk_norm: Norm of each head's queries and keys: Henry et al. 2020 (2010.04245), section 3.
        n_kv_head: Number of key and value heads; ``n_head`` if None.
        head_dim: Width of a head; ``dim / n_head`` if None.
        qkv_bias: Whether the products for queries, keys and values have a bias; ``bias`` if None. Qwen2 has biases
            there alone (Yang et al. 2024, 2407.10671, section 2.2.1).
        output_bias: Whether the output projection has a bias; ``bias`` if None.
        score_width: The d of the scores' ``√d``; the head's width if None.
        softcap: c, if scores become ``c tanh(scores / c)`` before position bias and mask: Gemma Team 2024
            (2408.00118), section 2, "Logit soft-capping". The fused kernel does not compute it, so every pass holds the
            ``time × time`` matrix, also with a window.
        rotary_base: The base of rotary positions that this layer has in place of the model's scheme where that rotates,
            and besides it where not: Gemma Team 2025 (2503.19786), section 2. None for the model's scheme alone.
        positions: The position scheme, used to check the head width; None to skip the check.
    """

    def __init__(
        self,
        dim: int,
        n_head: int,
        *,
        bias: bool,
        dropout: float,
        backend: Backend,
        qk_norm: Given = "none",
        n_kv_head: Heads | None = None,
        head_dim: Width | None = None,
        qkv_bias: bool | None = None,
        output_bias: bool | None = None,
        score_width: Positive | None = None,
        softcap: Positive | None = None,
        rotary_base: Base | None = None,
        positions: Positions | None = None,
    ) -> None:
        super().__init__(backend, dropout)
        self.n_head, self.n_kv_head = n_head, n_kv_head or n_head
        self.head_dim = head_dim or dim // n_head
        if n_head % self.n_kv_head:
            raise CallError(f"n_kv_head is {n_kv_head}; it must divide n_head, which is {n_head}")
        self.score_width, self.softcap = score_width, softcap
        self.rotary = None if rotary_base is None else own_rotary(rotary_base)
        for scheme in (positions, self.rotary):
            if scheme is not None:
                scheme.check_width(self.head_dim)
        rows, kv_rows = self.n_head * self.head_dim, self.n_kv_head * self.head_dim
        pieces = self.pieces_of(rows, kv_rows)
        has_bias = bias if qkv_bias is None else qkv_bias
        self.qkv = Linear(dim, sum(pieces.values()), bias=has_bias, maps=("stream", "heads"), pieces=pieces)
        self.q_norm = norms.make(qk_norm, dim=self.head_dim, bias=False)
        self.k_norm = norms.make(qk_norm, dim=self.head_dim, bias=False)
        has_bias = bias if output_bias is None else output_bias
        self.w_o = Linear(rows, dim, bias=has_bias, maps=("heads", "stream"))
        self.convolution: Layer | None = None

    def pieces_of(self, rows: int, kv_rows: int) -> dict[str, int]:
        """The matrices fused into ``qkv`` and their rows, for ``rows`` of queries and ``kv_rows`` of keys or values."""
        return {"q": rows, "k": kv_rows, "v": kv_rows}

    def forward(self, x: Tensor, context: Context = Context()) -> Tensor:
        q, k, v = self.heads(x, context)
        mixed = self.attend(self.see("q", q), self.see("k", k), self.see("v", v), context)  # (B, H, T, D)
        return self.merge_heads(mixed)

    def heads(self, x: Tensor, context: Context) -> tuple[Tensor, Tensor, Tensor]:
        """Queries ``(batch, n_head, time, head_dim)``, keys and values ``(batch, n_kv_head, time, head_dim)``."""
        qkv = self._by_head(self.projected(x, context))  # (B, H + 2·H_kv, T, D)
        q, k, v = torch.split(qkv, [self.n_head, self.n_kv_head, self.n_kv_head], dim=1)
        return self.place(q, self.q_norm, context), self.place(k, self.k_norm, context), v

    def projected(self, x: Tensor, context: Context) -> Tensor:
        """All that ``qkv`` concatenates, before norms and positions: ``(batch, time, rows)``."""
        products: Tensor = self.qkv(x)
        return products if self.convolution is None else self.convolution(products, context)

    def _by_head(self, products: Tensor) -> Tensor:
        """``(batch, time, rows)`` to ``(batch, rows / head_dim, time, head_dim)``."""
        return products.view(*products.shape[:2], -1, self.head_dim).transpose(1, 2)

    def convolve(self, make: Callable[[int], Layer]) -> bool:
        self.convolution = make(self.qkv.out_features)
        return True

    def place(self, x: Tensor, norm: nn.Module, context: Context) -> Tensor:
        """Norm queries or keys ``(batch, heads, time, width)``, then rotate them if the position scheme rotates."""
        return context.rotate(norm(x), self.rotary)

    def merge_heads(self, mixed: Tensor) -> Tensor:
        """Concatenate the heads and apply the output projection: ``(batch, time, dim)``."""
        return self.see("output", self.w_o(mixed.transpose(1, 2).flatten(2)))

    def flops(self, positions: Tensor) -> float:
        """The projections, plus ``4 · n_head · head_dim`` per column for scores and mixed values."""
        return super().flops(positions) + 4 * self.n_head * self.head_dim * columns_counted(self, positions)

    def cut(self) -> Cut | None:
        """By heads; a device has whole groups of query heads with their key head."""
        return Cut(units=("n_head", "n_kv_head"), into="qkv", out="w_o", whole=("q_norm", "k_norm"))

    @property
    def can_scale_scores(self) -> bool:  # type: ignore[override]
        """Whether there are scores, and no norm of queries and keys."""
        return self.has_scores and isinstance(self.q_norm, NoNorm)

    @torch.no_grad()
    def scale_scores(self, factors: Tensor) -> None:
        """Queries and keys take the root each; keys that heads share stay as they are, and queries take the whole."""
        rooted = factors.sqrt().repeat_interleave(self.head_dim)
        scales = {"q": rooted, "k": rooted}
        if self.n_kv_head != self.n_head:
            scales = {"q": factors.repeat_interleave(self.head_dim)}
        for parameter in (self.qkv.weight, self.qkv.bias):
            if parameter is not None:
                rows = dict(zip(self.qkv.pieces, torch.split(parameter, list(self.qkv.pieces.values())), strict=True))
                for name, scale in scales.items():
                    rows[name].mul_(scale.to(parameter.dtype).view(-1, *[1] * (parameter.ndim - 1)))

    def query_gains(self) -> list[nn.Parameter]:
        return list(self.q_norm.parameters()) if self.q_norm.has_gain else []

    def head_matrices(self) -> HeadMatrices:
        heads = {name: self.n_kv_head if name in ("k", "v") else self.n_head for name in self.qkv.pieces}
        found = split_heads(self.qkv.applied, self.qkv.bias, self.qkv.pieces, heads, self.n_head)
        (w_q, b_q), (w_k, b_k), (w_v, b_v) = found["q"], found["k"], found["v"]
        w_o = self.w_o.applied.mT.view(self.n_head, -1, self.w_o.out_features)
        why = "" if self.convolution is None else "its queries, keys and values also hold those of earlier tokens"
        return HeadMatrices(w_q, w_k, w_v, w_o, b_q, b_k, b_v, self.w_o.bias, no_qk=why, no_ov=why)

    def turned(self, x: Tensor, context: Context) -> Tensor:
        return self.place(x, nn.Identity(), context)

    def value_output(self) -> tuple[Tensor, Tensor] | None:
        if self.convolution is not None:
            return None  # a value holds those of earlier tokens, too
        _, _, w_v = torch.split(self.qkv.applied, list(self.qkv.pieces.values()))
        values = w_v.view(self.n_kv_head, self.head_dim, -1).mT  # (H_kv, d, D)
        output = self.w_o.applied.mT.view(self.n_head, self.head_dim, -1)  # (H, D, d)
        return values.repeat_interleave(self.n_head // self.n_kv_head, dim=0), output
