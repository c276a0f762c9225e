"""Communication with a gradient: four conjugate pairs.

Each function is linear, and its backward pass is its transpose: what is copied forward is summed backward, what is
gathered forward is reduced and scattered backward, what is split forward is joined backward, and the reverse.
"""

from collections.abc import Callable
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor

Group = dist.ProcessGroup


def _same(x: Tensor, group: Group, dim: int) -> Tensor:
    return x.view_as(x)


def _total(x: Tensor, group: Group, dim: int) -> Tensor:
    total = x.clone(memory_format=torch.contiguous_format)
    dist.all_reduce(total, group=group)
    return total


def _gathered(x: Tensor, group: Group, dim: int) -> Tensor:
    parts = [torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(group.size())]
    dist.all_gather(parts, x.contiguous(), group=group)
    return torch.cat(parts, dim)


def _own_part(x: Tensor, group: Group, dim: int) -> Tensor:
    return x.chunk(group.size(), dim)[group.rank()].contiguous()


def _own_part_of_total(x: Tensor, group: Group, dim: int) -> Tensor:
    parts = torch.cat(x.chunk(group.size(), dim), 0).contiguous()
    part = parts.new_empty(parts.shape[0] // group.size(), *parts.shape[1:])
    dist.reduce_scatter_single(part, parts, group=group)
    return part


_Collective = Callable[[Tensor, Group, int], Tensor]


def _pair(forward_pass: _Collective, backward_pass: _Collective) -> Callable[..., Tensor]:
    class Pair(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor, group: Group, dim: int) -> Tensor:
            ctx.group, ctx.dim = group, dim
            return forward_pass(x, group, dim)

        @staticmethod
        def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
            return backward_pass(grads[0], ctx.group, ctx.dim), None, None

    return cast(Callable[..., Tensor], Pair.apply)


_copy, _sum = _pair(_same, _total), _pair(_total, _same)
_gather, _reduce_scatter = _pair(_gathered, _own_part_of_total), _pair(_own_part_of_total, _gathered)
_split, _join = _pair(_own_part, _gathered), _pair(_gathered, _own_part)


def copied(x: Tensor, group: Group) -> Tensor:
    """``x`` itself, equal in all processes; backward: the sum of their gradients."""
    return _copy(x, group, 0)


def summed(x: Tensor, group: Group) -> Tensor:
    """The sum of ``x`` over the processes; backward: the gradient itself, equal in all of them."""
    return _sum(x, group, 0)


def gathered(x: Tensor, group: Group, dim: int) -> Tensor:
    """The parts ``x`` of all processes, concatenated along ``dim``; backward: this part of the summed gradient."""
    return _gather(x, group, dim)


def scattered(x: Tensor, group: Group, dim: int) -> Tensor:
    """This process's part along ``dim`` of the sum of ``x`` over the processes; backward: all parts' gradients."""
    return _reduce_scatter(x, group, dim)


def split(x: Tensor, group: Group, dim: int) -> Tensor:
    """This process's part along ``dim`` of an ``x`` that is equal in all; backward: all parts' gradients."""
    return _split(x, group, dim)


def joined(x: Tensor, group: Group, dim: int) -> Tensor:
    """The parts of all processes along ``dim``, for computations equal in all; backward: this part of the gradient."""
    return _join(x, group, dim)
