"""Causal attention in half precision on a CPU, one block of queries after the other.

torch's fused kernel multiplies in fp32 there, whatever the dtype. Here products whose operands are rounded in any case,
those of the gradients of queries, keys and values, run in half precision. Scores, weights and what has to be exact
between them are in fp32. A block of queries skips the keys after its last query, and the backward pass computes the
weights once more, so that no ``time × time`` matrix is kept.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from lightning_gpt.models.layer import compute_dtype, without_autocast

LONGEST = 512
"""Longest rows for which this was measured to be faster than the fused kernel."""
_ROWS = 64
"""Queries in a block."""
_SCORES = 2**20
"""Most scores in a block, 4 MB in fp32: it takes as many heads together as have no more."""


def suits_blockwise(q: Tensor, v: Tensor) -> bool:
    """Whether queries ``(..., time, width)`` and values on a CPU are multiplied in bf16, in rows that are not too long.

    Compiled code keeps the fused kernel, which is one operation.
    """
    is_half = v.device.type == "cpu" and compute_dtype(v) == torch.bfloat16
    return is_half and q.shape[-2] <= LONGEST and not torch.compiler.is_compiling()


def blockwise_attention(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """``softmax(mask(scale · Q Kᵀ)) V`` with the causal mask, differentiable once.

    Args:
        q: Queries ``(..., time, width)``.
        k: Keys, of the same shape.
        v: Values ``(..., time, value width)``.
        scale: Factor of the scores.

    Returns:
        ``(..., time, value width)``, in the dtype of products with ``v``.
    """
    dtype = compute_dtype(v)
    apply: Callable[..., Tensor] = _Attention.apply
    mixed = apply(*(x.to(dtype).reshape(-1, *x.shape[-2:]) for x in (q, k, v)), scale)
    return mixed.view(*q.shape[:-1], v.shape[-1])


class _Attention(torch.autograd.Function):
    """Takes and returns ``(heads, time, width)``."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
        mixed = torch.empty_like(v)
        with without_autocast(q):
            for heads in _together(q):
                _mix(q[heads], k[heads], v[heads], scale, mixed[heads])
        ctx.save_for_backward(q, k, v)
        ctx.scale = scale
        return mixed

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        if torch.is_grad_enabled():
            raise RuntimeError("attention by blocks is differentiable once; for more, use attention_backend 'manual'")
        q, k, v = ctx.saved_tensors
        of_q, of_k, of_v = (torch.empty_like(x) for x in (q, k, v))
        with without_autocast(q):
            for heads in _together(q):
                given, found = (q[heads], k[heads], v[heads], grad[heads]), (of_q[heads], of_k[heads], of_v[heads])
                _differentiate(*given, ctx.scale, *found)
        return of_q, of_k, of_v, None


def _together(q: Tensor) -> Iterator[slice]:
    """The heads that are computed together."""
    heads, time, _ = q.shape
    size = max(1, _SCORES // (_ROWS * time))
    return (slice(start, start + size) for start in range(0, heads, size))


def _blocks(time: int) -> Iterator[slice]:
    """The queries of each block."""
    return (slice(start, min(time, start + _ROWS)) for start in range(0, time, _ROWS))


def _mix(q: Tensor, k: Tensor, v: Tensor, scale: float, mixed: Tensor) -> None:
    exact = torch.promote_types(q.dtype, torch.float32)
    queries, keys, values = q.to(exact) * scale, k.to(exact), v.to(exact)
    array = _array(queries)
    for rows in _blocks(q.shape[1]):
        mixed[:, rows] = torch.bmm(_weights(queries, keys, rows, array), values[:, : rows.stop])


def _differentiate(
    q: Tensor, k: Tensor, v: Tensor, grad: Tensor, scale: float, of_q: Tensor, of_k: Tensor, of_v: Tensor
) -> None:
    """Write the gradients of q, k and v, given that of the output."""
    exact = torch.promote_types(q.dtype, torch.float32)
    queries, keys, values, scaled = q.to(exact) * scale, k.to(exact), v.to(exact), grad.to(exact) * scale
    sum_k, sum_v = torch.zeros_like(keys), torch.zeros_like(values)
    first, second = _array(queries), _array(queries)
    for rows in _blocks(q.shape[1]):
        seen = slice(rows.stop)
        weights = _weights(queries, keys, rows, first)
        sum_v[:, seen] += torch.bmm(weights.to(q.dtype).mT, grad[:, rows]).to(exact)
        slopes = second[: weights.numel()].view_as(weights)
        torch.bmm(scaled[:, rows], values[:, seen].mT, out=slopes)
        torch._softmax_backward_data(slopes, weights, -1, exact, grad_input=slopes)
        of_scores = slopes.to(q.dtype)
        of_q[:, rows] = torch.bmm(of_scores, k[:, seen])
        sum_k[:, seen] += torch.bmm(of_scores.mT, q[:, rows]).to(exact)
    of_k.copy_(sum_k)
    of_v.copy_(sum_v)


def _array(queries: Tensor) -> Tensor:
    """Room for the scores of any block."""
    heads, time, _ = queries.shape
    return queries.new_empty(heads * min(_ROWS, time) * time)


def _weights(queries: Tensor, keys: Tensor, rows: slice, array: Tensor) -> Tensor:
    """The weights ``(heads, rows, columns)`` of a block's scaled queries over the keys up to its last; in ``array``."""
    shape = len(queries), rows.stop - rows.start, rows.stop
    scores = array[: shape[0] * shape[1] * shape[2]].view(shape)
    torch.bmm(queries[:, rows], keys[:, : rows.stop].mT, out=scores)
    hidden = scores.new_ones(shape[1], shape[1], dtype=torch.bool).triu(1)
    scores[:, :, rows.start :].masked_fill_(hidden, -torch.inf)
    return torch.softmax(scores, dim=-1, out=scores)
