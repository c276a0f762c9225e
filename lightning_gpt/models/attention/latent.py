"""Attention whose keys and values are computed from one short latent vector per token; only that is cached."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_gpt.errors import CallError
from lightning_gpt.models.attention.formula import Backend, CausalAttention
from lightning_gpt.models.attention.head_matrices import HeadMatrices, split_heads
from lightning_gpt.models.attention.mask import AttentionMask, columns_counted
from lightning_gpt.models.attention.mixer import attentions
from lightning_gpt.models.context import Context
from lightning_gpt.models.layer import Linear
from lightning_gpt.models.norms import RMSNorm, norms
from lightning_gpt.models.positions.scheme import Positions
from lightning_gpt.models.registry import Given
from lightning_gpt.options import Width


@attentions.register("latent")
class LatentAttention(CausalAttention):
    """Multi-head latent attention: DeepSeek-AI 2024, "DeepSeek-V2" (2405.04434), section 2.1, eq. 9 to 19.

    The latent ``c_t = RMSNorm(W_DKV h_t)``, of width ``kv_rank``, gives the keys ``k_t = W_UK c_t`` and values
    ``v_t = W_UV c_t`` of every head. Queries are computed from their own latent, of width ``q_rank``, or directly from
    ``h_t``. Rotating such keys would undo the compression, so rotary positions act on a separate part:
    ``q_t,i = [W_UQ,i c^q_t ; R(W_QR,i c^q_t)]`` and ``k_t,i = [W_UK,i c_t ; R(W_KR h_t)]``, where all heads share the
    rotated key. Then ``o_i = Σ_j softmax_j(q_t,i · k_j,i / √(head_dim + rope_dim)) v_j,i``. The two norms are those of
    section 3.1.2. If the position scheme does not rotate, the rotary part is omitted.

    The cache keeps ``c_t`` and the rotated key: ``kv_rank + rope_dim`` numbers per token. For a few queries and a long
    cache, W_UK is applied to the queries instead of the cached latents, and W_UV to the mixed latents (the absorption
    described below eq. 11), so that earlier tokens' keys and values are not recomputed. Other passes compute all keys
    and values. Both give the same result; the cheaper one is chosen.

    ``qk_norm`` raises an error: the norms of the latents replace it. There is no value–output product, because a norm
    lies between the value's two matrices. Projections from a latent have no bias. YaRN's temperature acts only on the
    rotary part of the scores.

    Intermediates besides those of :class:`CausalAttention`: ``latent`` ``(batch, time, kv_rank)``, ``q`` and ``k``
    ``(batch, n_head, time, head_dim + rope_dim)``, ``v`` and ``head_output`` ``(batch, n_head, time, value_dim)``, and
    ``output`` ``(batch, time, dim)``.

    Args:
        dim: Width of the residual stream.
        n_head: Number of heads.
        bias: Whether the projections from the stream, and the output projection, have a bias.
        dropout: Probability of dropping an attention weight in training.
        backend: How attention is computed.
        positions: The position scheme.
        kv_rank: Width of the latent for keys and values.
        q_rank: Width of the latent for queries; None for no query latent.
        head_dim: Width of the unrotated part of a query or key; ``dim / n_head`` if None.
        rope_dim: Width of the rotated part; half of ``head_dim`` if None.
        value_dim: Width of a head's values; ``head_dim`` if None.
        qk_norm: Must be ``none``.
    """

    def __init__(
        self,
        dim: int,
        n_head: int,
        *,
        bias: bool,
        dropout: float,
        backend: Backend,
        positions: Positions,
        kv_rank: Width,
        q_rank: Width | None = None,
        head_dim: Width | None = None,
        rope_dim: Width | None = None,
        value_dim: Width | None = None,
        qk_norm: Given = "none",
    ) -> None:
        super().__init__(backend, dropout)
        plain = dim // n_head if head_dim is None else head_dim
        rotated = max(1, plain // 2) if rope_dim is None else rope_dim
        values = plain if value_dim is None else value_dim
        if norms.require(qk_norm).kind != "none":
            raise CallError("attention latent norms its latents, not queries and keys; use qk_norm none")
        self.n_head, self.kv_rank = n_head, kv_rank
        self.plain_dim, self.rope_dim, self.value_dim = plain, rotated if positions.rotates else 0, values
        self.head_dim = self.plain_dim + self.rope_dim
        if positions.rotates:
            positions.check_width(self.rope_dim, "rope_dim")
        rows = {"q": n_head * self.head_dim}
        self.q_down: Linear | None = None
        if q_rank is None:
            self.q_up = Linear(dim, rows["q"], bias=bias, maps=("stream", "heads"), pieces=rows)
        else:
            self.q_down = Linear(dim, q_rank, bias=bias, maps=("stream", "hidden"), pieces={"q": q_rank})
            self.q_latent_norm = RMSNorm(q_rank)
            self.q_up = Linear(q_rank, rows["q"], bias=False, maps=("hidden", "heads"), pieces=rows)
        down = {"latent": kv_rank, "k": self.rope_dim} if self.rope_dim else {"latent": kv_rank}
        self.kv_down = Linear(dim, sum(down.values()), bias=bias, maps=("stream", "hidden"), pieces=down)
        self.kv_latent_norm = RMSNorm(kv_rank)
        up = {"k": n_head * self.plain_dim, "v": n_head * self.value_dim}
        self.kv_up = Linear(kv_rank, sum(up.values()), bias=False, maps=("hidden", "heads"), pieces=up)
        self.w_o = Linear(n_head * self.value_dim, dim, bias=bias, maps=("heads", "stream"))

    def forward(self, x: Tensor, context: Context = Context()) -> Tensor:
        q, kept, no_values = self.heads(x, context)
        mixed = self.attend(self.see("q", q), kept, no_values, context)  # (B, H, T, D_v)
        return self.see("output", self.w_o(mixed.transpose(1, 2).flatten(2)))

    def heads(self, x: Tensor, context: Context) -> tuple[Tensor, Tensor, Tensor]:
        """Queries ``(batch, n_head, time, head_dim + rope_dim)``, and what is cached of each token.

        The latter is one key ``(batch, 1, time, kv_rank + rope_dim)``, the latent and the rotated key, and values of
        width 0.
        """
        latent_q = x if self.q_down is None else self.q_latent_norm(self.q_down(x))
        q = self.q_up(latent_q).unflatten(-1, (self.n_head, self.head_dim)).transpose(1, 2)  # (B, H, T, D + R)
        latent, shared_key = torch.split(self.kv_down(x), [self.kv_rank, self.rope_dim], dim=-1)
        kept = self.see("latent", self.kv_latent_norm(latent))[:, None]  # (B, 1, T, C)
        if self.rope_dim:
            q = self.turned(q, context)
            kept = torch.cat([kept, context.rotate(shared_key[:, None])], dim=-1)  # (B, 1, T, C + R)
        return q, kept, kept[..., :0]

    def mix(self, q: Tensor, k: Tensor, v: Tensor, columns: Tensor | None, context: Context) -> Tensor:
        """As in the base class; k holds the cached latents and rotated keys, and v is empty."""
        if self._scores_latents(q.shape[-2], k.shape[-2]):
            return self._mix_latents(q, k, columns, context)
        latent, shared_key = k[..., : self.kv_rank], k[..., self.kv_rank :]
        made = torch.split(self.kv_up(latent[:, 0]), list(self.kv_up.pieces.values()), dim=-1)
        keys, values = (x.view(*x.shape[:2], self.n_head, -1).transpose(1, 2) for x in made)
        keys = torch.cat([keys, shared_key.expand(-1, self.n_head, -1, -1)], dim=-1)  # (B, H, T, D + R)
        return super().mix(q, self.see("k", keys), self.see("v", values), columns, context)

    def _scores_latents(self, rows: int, columns: int) -> bool:
        """Whether earlier tokens are attended to and scoring latents is cheaper than computing their keys and values.

        Never if keys or values are being recorded.
        """
        up, mixed = self.kv_rank * (self.plain_dim + self.value_dim), rows * columns
        by_latents = rows * up + mixed * (2 * self.kv_rank + self.rope_dim)
        by_keys = columns * up + mixed * (self.head_dim + self.value_dim)
        return rows < columns and by_latents < by_keys and not self.asked_for("k", "v")

    def _mix_latents(self, q: Tensor, kept: Tensor, columns: Tensor | None, context: Context) -> Tensor:
        """The same, scoring and mixing the latents themselves."""
        made = torch.split(self.kv_up.applied, list(self.kv_up.pieces.values()))
        w_k, w_v = (weight.view(self.n_head, -1, self.kv_rank) for weight in made)  # (H, D, C), (H, D_v, C)
        q = torch.cat([q[..., : self.plain_dim] @ w_k, q[..., self.plain_dim :]], dim=-1)  # (B, H, T, C + R)
        q = q * math.sqrt(q.shape[-1] / self.head_dim)  # the kernel divides scores by the root of this width
        mixed = super().mix(q, kept, kept, columns, context)[..., : self.kv_rank]
        return mixed @ w_v.mT

    def _kernel(self, q: Tensor, k: Tensor, v: Tensor, mask: AttentionMask, dropout: float) -> Tensor:
        """The fused kernels need queries, keys and values of equal width, so the narrower ones are zero-padded."""
        width, of_values = max(q.shape[-1], v.shape[-1]), v.shape[-1]
        if width > q.shape[-1]:
            q = q * math.sqrt(width / q.shape[-1])
        q, k, v = (F.pad(x, (0, width - x.shape[-1])) if x.shape[-1] < width else x for x in (q, k, v))
        return super()._kernel(q, k, v, mask, dropout)[..., :of_values]

    def head_matrices(self) -> HeadMatrices:
        """The products of the matrices into a latent and out of it, with the gain of its norm between them.

        The norm also divides each token's latent by its root mean square, so what comes out of a latent is that of
        these matrices up to a positive factor of each token. Neither the rotated part of the keys, the last
        ``rope_dim`` columns of W_K, nor queries without a latent have such a factor.
        """
        down = split_heads(
            self.kv_down.applied, self.kv_down.bias, self.kv_down.pieces, dict.fromkeys(self.kv_down.pieces, 1), 1
        )
        gain = self.kv_latent_norm.weight
        up = split_heads(self.kv_up.applied, None, self.kv_up.pieces, {"k": self.n_head, "v": self.n_head}, self.n_head)
        into, of_bias = down["latent"]
        (w_k, b_k), (w_v, b_v) = (
            _through(into[0] * gain, None if of_bias is None else of_bias[0] * gain, up[name][0]) for name in "kv"
        )
        if self.rope_dim:
            w_turned, b_turned = down["k"]
            w_k = torch.cat([w_k, w_turned.expand(self.n_head, -1, -1)], dim=-1)
            if b_k is not None and b_turned is not None:
                b_k = torch.cat([b_k, b_turned.expand(self.n_head, -1)], dim=-1)
        heads = {"q": self.n_head}
        w_q, b_q = split_heads(self.q_up.applied, self.q_up.bias, self.q_up.pieces, heads, self.n_head)["q"]
        if self.q_down is not None:
            gain, bias = self.q_latent_norm.weight, self.q_down.bias
            w_q, b_q = _through(self.q_down.applied.mT * gain, None if bias is None else bias * gain, w_q)
        w_o = self.w_o.applied.mT.view(self.n_head, -1, self.w_o.out_features)
        return HeadMatrices(w_q, w_k, w_v, w_o, b_q, b_k, b_v, self.w_o.bias)

    def turned(self, x: Tensor, context: Context) -> Tensor:
        return torch.cat([x[..., : self.plain_dim], context.rotate(x[..., self.plain_dim :])], dim=-1)

    def flops(self, positions: Tensor) -> float:
        """The projections, plus scores and mixed values of a pass that computes keys and values."""
        of_heads = 2 * self.n_head * (self.head_dim + self.value_dim)
        return super().flops(positions) + of_heads * columns_counted(self, positions)


def _through(into: Tensor, bias: Tensor | None, out_of: Tensor) -> tuple[Tensor, Tensor | None]:
    """A matrix ``(dim, rank)`` and its bias, then those of each head ``(n_head, rank, width)``, as one."""
    return into @ out_of, None if bias is None else bias @ out_of
