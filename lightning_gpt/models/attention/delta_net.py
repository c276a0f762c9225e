"""Gated DeltaNet, a recurrent mixer: per head, a matrix that is decayed, corrected and read at every token."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_gpt.errors import CallError
from lightning_gpt.models.attention.chunks import ChunkCut, chunks_of_pass, split, wide
from lightning_gpt.models.attention.formula import Backend
from lightning_gpt.models.attention.mixer import Mixer, attentions
from lightning_gpt.models.context import Context
from lightning_gpt.models.kv_cache import LayerState
from lightning_gpt.models.layer import Linear, Matrix, without_autocast
from lightning_gpt.models.norms import RMSNorm, norms
from lightning_gpt.models.positions.scheme import Positions
from lightning_gpt.models.registry import Given
from lightning_gpt.options import Width


class DeltaState:
    """The state of one layer: each head's matrix, and the last inputs of the convolutions.

    Its size does not depend on the length of the text. Updates to the matrix cannot be undone.
    """

    can_truncate = False
    can_be_fixed = False
    can_share = True
    row_tensors: tuple[str, ...] = ("memory", "inputs")

    def __init__(self) -> None:
        self.memory: Tensor | None = None  # (batch, n_head, head_dim, value_dim)
        self.inputs: Tensor | None = None  # (batch, conv_width - 1, channels)

    def truncate(self, length: int) -> None:
        raise CallError("attention delta_net keeps one state, from which tokens cannot be removed; read the text again")

    def select(self, rows: Tensor) -> None:
        self.memory = None if self.memory is None else self.memory[rows]
        self.inputs = None if self.inputs is None else self.inputs[rows]


@attentions.register("delta_net")
class GatedDeltaNet(Mixer):
    """Gated DeltaNet: Yang, Kautz & Hatamizadeh 2024 (2412.06464), section 3, eq. 10.

    Per head, ``S_t = S_{t−1} (α_t (I − β_t k_t k_tᵀ)) + β_t v_t k_tᵀ`` and ``o_t = S_t q_t``: the matrix S decays by
    α_t, and a fraction β_t of what it stores at the key k_t is replaced by v_t. q, k and v are linear projections of
    the stream, followed by a causal convolution of ``conv_width`` tokens per channel and SiLU; q and k are then
    normalised to length 1. With ``W_α``, ``W_β`` and ``W_g`` linear in the stream, ``β_t = σ(W_β x_t)``, and
    ``α_t = exp(−e^a_log softplus(W_α x_t + dt_bias))`` with two learned scalars per head (Dao & Gu 2024, "Mamba-2",
    2405.21060). The output is ``W_o (RMSNorm(o_t) ⊙ SiLU(W_g x_t))``, with each head normed separately.

    ``sdpa`` processes chunks of 64 tokens by matrix products and carries S from one to the next (:func:`by_chunks`), in
    time linear in T; ``manual`` computes the recurrence token by token. Reading one more token costs the same however
    long the text is. S is kept in fp32 or better. If documents are kept apart, each starts with S = 0 and with zeros
    before it in the convolutions.

    The recurrence encodes order, so no positions are needed. Rotary schemes have no effect here (they may act in other
    layers of the model); schemes that add to the scores raise an error, because there are no scores. ``qk_norm`` also
    raises an error: queries and keys already have length 1. There is no dropout within the layer.

    Intermediates: ``q`` and ``k`` ``(batch, n_head, time, head_dim)`` and ``v`` ``(batch, n_head, time, value_dim)`` as
    they enter the recurrence; ``log_alpha`` and ``beta`` ``(batch, time, n_head)``; ``head_output``
    ``(batch, n_head, time, value_dim)``, which is o before its norm; ``output`` ``(batch, time, dim)``. There is no
    pattern.

    Args:
        dim: Width of the residual stream.
        n_head: Number of heads.
        bias: Whether the projections to q, k, v, the output gate and the output have a bias.
        backend: ``sdpa`` for chunks, ``manual`` for the recurrence.
        positions: The position scheme.
        head_dim: Width of a query or key; ``dim / n_head`` if None.
        value_dim: Width of a head's values; ``head_dim`` if None.
        conv_width: Number of tokens each convolution covers, including the current one.
        qk_norm: Must be ``none``.
    """

    has_scores = False

    def __init__(
        self,
        dim: int,
        n_head: int,
        *,
        bias: bool,
        backend: Backend,
        positions: Positions,
        head_dim: Width | None = None,
        value_dim: Width | None = None,
        conv_width: Width = 4,
        qk_norm: Given = "none",
    ) -> None:
        super().__init__()
        self.n_head, self.backend, self.conv_width = n_head, backend, conv_width
        self.head_dim = dim // n_head if head_dim is None else head_dim
        self.value_dim = self.head_dim if value_dim is None else value_dim
        if positions.biases:
            raise CallError(
                f"attention delta_net has no scores for {type(positions).__name__} to add to; "
                f"use position none, or another attention"
            )
        if norms.require(qk_norm).kind != "none":
            raise CallError("attention delta_net already normalises queries and keys to length 1; use qk_norm none")
        keys, values = n_head * self.head_dim, n_head * self.value_dim
        pieces = {"q": keys, "k": keys, "v": values}
        self.qkv = Linear(dim, 2 * keys + values, bias=bias, maps=("stream", "heads"), pieces=pieces)
        self.rates = Linear(
            dim, 2 * n_head, bias=False, maps=("stream", "score"), pieces={"alpha": n_head, "beta": n_head}
        )
        self.gate = Linear(dim, values, bias=bias, maps=("stream", "heads"))
        self.conv = nn.Parameter(torch.empty(2 * keys + values, conv_width))
        self.a_log = nn.Parameter(torch.empty(n_head))
        self.dt_bias = nn.Parameter(torch.empty(n_head))
        self.head_norm = RMSNorm(self.value_dim)
        self.w_o = Linear(values, dim, bias=bias, maps=("heads", "stream"))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Convolutions uniform within ±1/√conv_width; the decay parameters as in Mamba-2's code.

        ``e^a_log`` is uniform in [1, 16]; the step ``softplus(dt_bias)`` is log-uniform in [0.001, 0.1].
        """
        with torch.no_grad():
            nn.init.uniform_(self.conv, -1 / math.sqrt(self.conv_width), 1 / math.sqrt(self.conv_width))
            self.a_log.uniform_(1, 16).log_()
            step = self.dt_bias.uniform_(math.log(0.001), math.log(0.1)).exp()
            self.dt_bias.copy_(step + torch.log(-torch.expm1(-step)))  # the inverse of softplus

    def matrices(self) -> Iterator[Matrix]:
        """The convolutions: one row per channel, over a few positions."""
        yield Matrix(self.conv, "position", "heads", self.qkv.pieces)

    def new_state(self, capacity: int) -> LayerState:
        return DeltaState()

    def forward(self, x: Tensor, context: Context = Context()) -> Tensor:
        state = DeltaState() if context.state is None else cast(DeltaState, context.state)  # made by new_state
        mixed = self._convolved(self.qkv(x), context, state)
        q, k, v = (
            part.view(*part.shape[:2], self.n_head, -1).transpose(1, 2)  # (B, H, T, D)
            for part in torch.split(F.silu(mixed), list(self.qkv.pieces.values()), dim=-1)
        )
        q, k = F.normalize(q, dim=-1, eps=1e-6), F.normalize(k, dim=-1, eps=1e-6)
        log_alpha, beta = self._rates(x, context)
        read = Read(
            q=self.see("q", q),
            k=self.see("k", k),
            v=self.see("v", v),
            log_alpha=self.see("log_alpha", log_alpha).mT,
            beta=self.see("beta", beta).mT,
        )
        o = self.see("head_output", self._recurrence(read, context, state))  # (B, H, T, D_v)
        normed = self.head_norm(o).transpose(1, 2).flatten(2)  # (B, T, H·D_v)
        return self.see("output", self.w_o(normed * F.silu(self.gate(x))))

    def _convolved(self, x: Tensor, context: Context, state: DeltaState) -> Tensor:
        """``y_t = Σ_l conv_l ⊙ x_{t−l}`` within one document: ``(batch, time, channels)`` to the same shape."""
        time, before = x.shape[1], self.conv_width - 1
        past = x.new_zeros(len(x), before, x.shape[2]) if state.inputs is None else state.inputs.to(x.dtype)
        padded = torch.cat([past, x], dim=1)  # (B, before + T, channels)
        if context.lengths is None:
            state.inputs = padded[:, time:].clone()  # a view would keep the whole tensor alive
        else:  # the last real inputs of each row
            last = context.lengths[:, None] + torch.arange(before, device=x.device)
            state.inputs = padded.gather(1, last[..., None].expand(-1, -1, x.shape[2]))
        documents, y = context.documents, x * self.conv[:, -1]
        if documents is not None:  # inputs before the row belong to its first document
            documents = torch.cat([documents[:, :1].expand(-1, before), documents], dim=1)
        for lag in range(1, self.conv_width):
            earlier = padded[:, before - lag : before - lag + time]
            if documents is not None:
                same = documents[:, before - lag : before - lag + time] == documents[:, before:]
                earlier = earlier * same[..., None]
            y = y + earlier * self.conv[:, -1 - lag]
        return y

    def _rates(self, x: Tensor, context: Context) -> tuple[Tensor, Tensor]:
        """``log α`` and ``β`` of each token, ``(batch, time, n_head)``, in fp32 or better; 0 for padding."""
        alpha, beta = wide(self.rates(x)).chunk(2, dim=-1)  # (B, T, H)
        log_alpha = -wide(self.a_log).exp() * F.softplus(alpha + self.dt_bias)
        beta = beta.sigmoid()
        if context.lengths is None:
            return log_alpha, beta
        real = (torch.arange(x.shape[1], device=x.device) < context.lengths[:, None])[..., None]
        return log_alpha * real, beta * real

    def _recurrence(self, read: "Read", context: Context, state: DeltaState) -> Tensor:
        """o of each token ``(batch, n_head, time, value_dim)``, computed in fp32 or better; updates ``state``."""
        batch, time, dtype = len(read.q), read.q.shape[2], read.v.dtype
        read = Read(wide(read.q), wide(read.k), wide(read.v), read.log_alpha, read.beta)
        memory = state.memory
        if memory is None:
            memory = read.v.new_zeros(batch, self.n_head, self.head_dim, self.value_dim)
        with without_autocast(read.q):
            if self.backend == "manual" or time == 1:
                o, state.memory = by_steps(read, context.documents, memory)
            else:
                o, state.memory = by_chunks(read, chunks_of_pass(context, time, read.q.device), memory)
        return o.to(dtype)

    def flops(self, positions: Tensor) -> float:
        """The projections and convolutions, plus reading S at k, writing it at k and reading it at q."""
        convolutions = 2 * self.conv.numel()
        return super().flops(positions) + convolutions + 6 * self.n_head * self.head_dim * self.value_dim


@dataclass(frozen=True)
class Read:
    """The recurrence's inputs for the tokens of a pass."""

    q: Tensor  # (batch, n_head, time, head_dim), of length 1
    k: Tensor  # the same
    v: Tensor  # (batch, n_head, time, value_dim)
    log_alpha: Tensor  # (batch, n_head, time), at most 0
    beta: Tensor  # (batch, n_head, time), from 0 to 1


def by_steps(read: Read, documents: Tensor | None, memory: Tensor) -> tuple[Tensor, Tensor]:
    """Eq. 10, token by token.

    Args:
        read: The tokens.
        documents: ``(batch, time)``; the memory is reset at the start of each document except the first.
        memory: ``Sᵀ`` before the first token, ``(batch, n_head, head_dim, value_dim)``.

    Returns:
        o of each token ``(batch, n_head, time, value_dim)``, and ``Sᵀ`` after the last token.
    """
    outputs = []
    for t in range(read.q.shape[2]):
        q, k, v = read.q[:, :, t, None], read.k[:, :, t, None], read.v[:, :, t, None]  # rows: (B, H, 1, D)
        if t and documents is not None:
            memory = memory * (documents[:, t] == documents[:, t - 1])[:, None, None, None]
        memory = memory * read.log_alpha[:, :, t, None, None].exp()
        memory = memory + k.mT @ (read.beta[:, :, t, None, None] * (v - k @ memory))
        outputs.append(q @ memory)
    return torch.cat(outputs, dim=2), memory


def by_chunks(read: Read, chunks: ChunkCut, memory: Tensor) -> tuple[Tensor, Tensor]:
    """As :func:`by_steps`, using the WY representation of the product of a chunk's factors (section 3.3 of the paper).

    Let γ_i be the product of α from the chunk's first token to its i-th, and S the memory before the chunk. Token i
    adds ``u_i k_iᵀ`` to the memory, where ``u_i = β_i (v_i − γ_i S k_i − Σ_{j<i} γ_i/γ_j (k_i·k_j) u_j)``. This is a
    triangular system in u whose right-hand side is linear in S, so it is solved for all chunks at once; only the
    products with S are computed chunk by chunk.
    """
    time = read.q.shape[2]
    q, k, v = split(read.q), split(read.k), split(read.v)  # (B, H, N, C, D)
    log_alpha, beta = split(read.log_alpha[..., None]), split(read.beta[..., None])  # (B, H, N, C, 1)
    since_first = log_alpha.cumsum(dim=-2)  # log γ_i
    ratios = (since_first - since_first.mT).masked_fill(~chunks.mask, -torch.inf).exp()  # γ_i/γ_j for j ≤ i: (.., C, C)
    decay = since_first.exp() * chunks.reached  # γ_i of tokens in the document the memory comes from
    to_last = (since_first[..., -1:, :] - since_first).exp() * chunks.leaving  # γ_C/γ_j
    system = (beta * ratios * (k @ k.mT)).tril(-1)  # the unit diagonal is implied
    sides = torch.cat([beta * v, beta * decay * k], dim=-1)
    solved = torch.linalg.solve_triangular(system, sides, upper=False, unitriangular=True)
    from_values, from_memory = solved.split([v.shape[-1], k.shape[-1]], dim=-1)  # u = from_values − from_memory Sᵀ
    whole = since_first[..., -1:, :].exp() * chunks.through  # (B, H, N, 1, 1)
    left = (k * to_last).mT  # (B, H, N, D, C)
    before, added = [], []
    for n in range(q.shape[2]):
        before.append(memory)
        added.append(from_values[:, :, n] - from_memory[:, :, n] @ memory)
        memory = whole[:, :, n] * memory + left[:, :, n] @ added[-1]
    o = decay * q @ torch.stack(before, dim=2) + (ratios * (q @ k.mT)) @ torch.stack(added, dim=2)
    return o.flatten(2, 3)[:, :, :time], memory
