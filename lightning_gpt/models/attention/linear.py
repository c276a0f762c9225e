"""Attention without softmax: running sums over the past, at a cost linear in time."""

from dataclasses import dataclass, replace
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_gpt.errors import CallError
from lightning_gpt.models.attention.chunks import chunks_of_pass, split, wide
from lightning_gpt.models.attention.head_matrices import HeadMatrices
from lightning_gpt.models.attention.mask import AttentionMask
from lightning_gpt.models.attention.mixer import attentions
from lightning_gpt.models.attention.multi_head import MultiHeadAttention
from lightning_gpt.models.context import Context
from lightning_gpt.models.kv_cache import LayerState
from lightning_gpt.models.layer import Layer
from lightning_gpt.models.positions.scheme import Positions


def feature_map(x: Tensor) -> Tensor:
    """``φ(x) = elu(x) + 1``, positive: Katharopoulos et al. 2020 (2006.16236), eq. 7."""
    return F.elu(x) + 1


class Sums:
    """The state of one layer, of constant size: ``S = Σ_j φ(k_j) v_jᵀ`` and ``z = Σ_j φ(k_j)``.

    A token cannot be removed from these sums once it has been read.
    """

    can_truncate = False
    can_be_fixed = False
    can_share = True
    row_tensors: tuple[str, ...] = ("s", "z")

    def __init__(self) -> None:
        self.s: Tensor | None = None  # (batch, n_head, head_dim, head_dim)
        self.z: Tensor  # (batch, n_head, head_dim)

    def add(self, s: Tensor, z: Tensor) -> None:
        """Add the sums over further tokens."""
        self.s, self.z = (s, z) if self.s is None else (self.s + s, self.z + z)

    def truncate(self, length: int) -> None:
        raise CallError("linear attention keeps sums, from which tokens cannot be removed; read the text again")

    def select(self, rows: Tensor) -> None:
        if self.s is not None:
            self.s, self.z = self.s[rows], self.z[rows]


@attentions.register("linear")
class LinearAttention(MultiHeadAttention):
    """``y_i = φ(q_i)ᵀ Σ_j φ(k_j) v_jᵀ / φ(q_i)ᵀ Σ_j φ(k_j)`` over j ≤ i, with ``φ(x) = elu(x) + 1``.

    Katharopoulos et al. 2020 (2006.16236), eq. 7 to 12. Training and prefill process chunks of 64 tokens: within a
    chunk as a matrix, everything before it as one sum, so time and memory grow as T. Reading one more token costs the
    same however many were read.

    Rotary positions rotate ``φ(q)`` and ``φ(k)`` in the numerator only (Su et al. 2021, 2104.09864, eq. 19). Schemes
    that add to the scores raise an error, because there are no scores.

    Intermediates: ``q`` and ``k`` as they enter φ; ``scores`` (``φ(q_i)·φ(k_j)``), ``mask`` and ``pattern`` (the scores
    divided by their row sums) are computed only on request. Columns are the tokens of the pass: rows sum to 1 unless a
    cache holds earlier tokens or positions are rotary. There is no dropout of weights, because they are never computed.

    Args:
        positions: The position scheme.
        shared: As in :class:`~lightning_gpt.models.attention.multi_head.MultiHeadAttention`, except that ``dropout``
            has no effect on the weights, backend ``sdpa`` processes chunks while ``manual`` computes the matrix of all
            weights, and ``qk_norm`` is applied before φ.
    """

    keeps_keys = False
    has_scores = False

    def __init__(self, *, positions: Positions, **shared: Any) -> None:
        super().__init__(positions=positions, **shared)
        for option in ("score_width", "softcap", "rotary_base"):
            if shared.get(option) is not None:
                raise CallError(f"attention linear has no scores, and so no {option}: leave it out")
        if positions.biases:
            raise CallError(
                f"attention linear has no scores for {type(positions).__name__} to add to; "
                f"use position learned, sinusoidal, rotary or none, or another attention"
            )

    def new_state(self, capacity: int) -> LayerState:
        return Sums()

    def flops(self, positions: Tensor) -> float:
        """The projections, plus adding keys × values to the sums and reading them."""
        return Layer.flops(self, positions) + 4 * self.n_head * self.head_dim**2

    def place(self, x: Tensor, norm: nn.Module, context: Context) -> Tensor:
        """Norm queries or keys; positions rotate them only after φ."""
        return norm(x)  # type: ignore[no-any-return]

    def head_matrices(self) -> HeadMatrices:
        return replace(super().head_matrices(), no_qk="queries and keys go through a feature map")

    def attend(self, q: Tensor, k: Tensor, v: Tensor, context: Context = Context()) -> Tensor:
        """Mix the values: q ``(batch, n_head, time, head_dim)``, k and v with as many heads or fewer, to q's shape."""
        k, v = (heads.repeat_interleave(q.shape[1] // heads.shape[1], dim=1) for heads in (k, v))
        q, k = feature_map(q), feature_map(k)
        if context.lengths is not None:  # padding at a row's end must not enter the sums
            real = torch.arange(k.shape[-2], device=k.device) < context.lengths[:, None]
            k = k * real[:, None, :, None]
        read = _Read(q, k, context.rotate(q), context.rotate(k), v)
        state = Sums() if context.state is None else cast(Sums, context.state)  # made by new_state
        by_matrix = self.backend == "manual" or self.asked_for("mask", "scores", "pattern")
        mixed = self._by_matrix(read, context, state) if by_matrix else _by_chunks(read, context, state)
        if context.state is not None:
            state.add(wide(read.rotated_k).mT @ wide(v), wide(k).sum(dim=-2))
        return self.see("head_output", mixed)

    def _by_matrix(self, read: "_Read", context: Context, past: Sums) -> Tensor:
        """The formula, with the matrix of all the pass's weights."""
        time = read.q.shape[-2]
        plain = context.positions is None and context.documents is None and self.sees_all(time)
        seen = AttentionMask(self, context, context.positions, time, time, True, read.q.dtype, read.q.device, plain)
        mask = self.see("mask", seen.as_matrix())
        scores = self.see("scores", read.rotated_q @ read.rotated_k.mT)  # (B, H, T, T)
        total = (read.q @ read.k.mT).masked_fill(~mask, 0).sum(dim=-1, keepdim=True)
        if past.s is None:
            return self.see("pattern", scores.masked_fill(~mask, 0) / _positive(total)) @ read.v
        total = _positive(total + read.q @ past.z[..., None].to(total.dtype))
        pattern = self.see("pattern", scores.masked_fill(~mask, 0) / total)
        return pattern @ read.v + read.rotated_q @ past.s.to(total.dtype) / total


@dataclass(frozen=True)
class _Read:
    """The inputs of a pass after φ, each ``(batch, n_head, time, head_dim)``."""

    q: Tensor
    k: Tensor
    rotated_q: Tensor
    rotated_k: Tensor
    v: Tensor


def _by_chunks(read: _Read, context: Context, past: Sums) -> Tensor:
    """The formula, with one matrix per chunk and one sum for everything before it."""
    time = read.q.shape[-2]
    chunks = chunks_of_pass(context, time, read.q.device)
    # padded with 1, so that padding rows do not divide by 0
    q, k, rotated_q, rotated_k, v = (
        split(x, fill=1.0) for x in (read.q, read.k, read.rotated_q, read.rotated_k, read.v)
    )
    s, z = _carried(rotated_k * chunks.leaving, k * chunks.leaving, v, chunks.through, past)
    weights = (rotated_q @ rotated_k.mT).masked_fill(~chunks.mask, 0)  # (B, H, N, C, C)
    plain = weights if read.rotated_q is read.q else (q @ k.mT).masked_fill(~chunks.mask, 0)
    mixed = weights @ v + rotated_q @ s * chunks.reached
    total = plain.sum(dim=-1, keepdim=True) + q @ z[..., None] * chunks.reached
    return (mixed / _positive(total)).flatten(2, 3)[:, :, :time]


def _carried(rotated_k: Tensor, k: Tensor, v: Tensor, through: Tensor, past: Sums) -> tuple[Tensor, Tensor]:
    """The sums S and z before each chunk: ``(B, H, N, D, D)`` and ``(B, H, N, D)``."""
    added_s, added_z = wide(rotated_k.mT @ v), wide(k).sum(dim=-2)
    s, z = (
        (torch.zeros_like(added_s[:, :, 0]), torch.zeros_like(added_z[:, :, 0])) if past.s is None else (past.s, past.z)
    )
    all_s, all_z = [s], [z]
    for chunk in range(k.shape[2] - 1):
        s = s * through[:, :, chunk] + added_s[:, :, chunk]
        z = z * through[:, :, chunk, 0] + added_z[:, :, chunk]
        all_s.append(s)
        all_z.append(z)
    return torch.stack(all_s, dim=2).to(v.dtype), torch.stack(all_z, dim=2).to(v.dtype)


def _positive(total: Tensor) -> Tensor:
    """Clamp the denominator: vanishing features then give 0, with a finite gradient."""
    return total.clamp(min=max(1e-12, torch.finfo(total.dtype).tiny))
