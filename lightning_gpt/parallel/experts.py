"""Expert parallel: processes with rows of their own divide the experts of each mixture.

Lepikhin et al. 2020, "GShard" (2006.16668).

Each process holds some experts. The tokens that its router sends elsewhere travel there in one exchange and their
results come back in another, both with a gradient. Everything else in the model is data parallel over the same
processes.
"""

from collections.abc import Callable, Iterable
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Placement, Shard

from lightning_gpt.errors import CallError
from lightning_gpt.models.ffn.moe.experts import Experts


def mixtures_of(model: nn.Module) -> list[Experts]:
    """The experts of each mixture of a model."""
    return [part for part in model.modules() if isinstance(part, Experts)]


def require_experts(model: nn.Module, size: int) -> list[Experts]:
    """The experts of each mixture, if they can be divided over ``size`` processes.

    Raises:
        CallError: They cannot; the message says what would work.
    """
    found = mixtures_of(model)
    if not found:
        raise CallError(
            f"parallel.expert {size} divides the experts of mixtures, and the model has none: use parallel.data or "
            f"parallel.shard, or ffn moe"
        )
    for experts in found:
        if experts.n_expert % size:
            works = ", ".join(str(n) for n in range(1, experts.n_expert + 1) if experts.n_expert % n == 0)
            raise CallError(
                f"parallel.expert is {size}; it must divide the number of experts, n_expert {experts.n_expert}: {works}"
            )
    if getattr(getattr(model, "config", None), "layer_drop", None) is not None:
        raise CallError(
            "parallel.expert and layer_drop cannot be combined: a device that skips a layer would not exchange its "
            "tokens; use layer_drop none or parallel.expert 1"
        )
    return found


def divide_experts(model: nn.Module, mesh: DeviceMesh, with_tensor: DeviceMesh | None = None) -> list[Experts]:
    """Divide the experts of each mixture over the processes of a mesh of one axis, in place.

    Parameters become DTensors, of which each process holds its experts. Their gradients are the means over the axis, as
    those of parameters that every process holds are after averaging.

    Args:
        model: The model, with the same weights in every process.
        mesh: The axis.
        with_tensor: This axis and the tensor axis, if that has divided each expert already.

    Raises:
        CallError: The experts cannot be divided so.
    """
    found = require_experts(model, mesh.size())
    for experts in found:
        for name, whole in list(experts.named_parameters(recurse=False)):
            on, stored = mesh, whole.detach()
            placements: list[Placement] = [Shard(0)]
            if isinstance(stored, DTensor):
                assert with_tensor is not None
                on, placements = with_tensor, [Shard(0), *stored.placements]
            local = stored.to_local() if isinstance(stored, DTensor) else stored
            own = local.chunk(mesh.size())[mesh.get_local_rank()].clone()
            spread = DTensor.from_local(own, on, placements, run_check=False, shape=whole.shape, stride=whole.stride())
            setattr(experts, name, nn.Parameter(spread, requires_grad=whole.requires_grad))
        experts.divided = _Exchanged(experts.n_expert, mesh)
    return found


class _Exchanged:
    """The exchange of one mixture's rows.

    Args:
        n_expert: Number of experts of all processes.
        mesh: The processes.
    """

    def __init__(self, n_expert: int, mesh: DeviceMesh) -> None:
        self._group, self._size = mesh.get_group(), mesh.size()
        self._each = n_expert // self._size
        self.first = mesh.get_local_rank() * self._each

    def own(self, weights: Tensor) -> Tensor:
        """This process's experts, whose gradient is divided by the number of processes."""
        local = weights.to_local() if isinstance(weights, DTensor) else weights
        return cast(Tensor, _Averaged.apply(local, self._size))  # type: ignore[no-untyped-call]

    def bring(self, x: Tensor, counts: Tensor) -> tuple[Tensor, Tensor, Callable[[Tensor], Tensor]]:
        """The rows for this process's experts, sorted by expert, their counts, and the way back."""
        theirs = torch.empty_like(counts)
        dist.all_to_all_single(theirs, counts.contiguous(), group=self._group)
        by_process = torch.stack([counts, theirs]).view(2, self._size, self._each)
        out, into = by_process.sum(dim=2).tolist()  # the exchange needs them on the host
        came = exchanged(x, out, into, self._group)
        # the rows of each process are sorted by expert; sort those of all
        expert = torch.arange(self._each, device=x.device).repeat(self._size)
        order = expert.repeat_interleave(theirs, output_size=len(came)).argsort(stable=True)

        def take_back(results: Tensor) -> Tensor:
            return exchanged(results.index_select(0, order.argsort()), into, out, self._group)

        return came.index_select(0, order), by_process[1].sum(dim=0), take_back


def exchanged(x: Tensor, out: Iterable[int], into: Iterable[int], group: dist.ProcessGroup) -> Tensor:
    """Rows sent to, and received from, each process of a group; backward: their gradients, sent back.

    Args:
        x: The rows, ``(sum of out, ...)``: those for the first process, then those for the second, and so on.
        out: Number of rows for each process.
        into: Number of rows from each process.
        group: The processes.
    """
    return cast(Tensor, _Exchange.apply(x, list(out), list(into), group))  # type: ignore[no-untyped-call]


def _exchange(x: Tensor, out: list[int], into: list[int], group: dist.ProcessGroup) -> Tensor:
    received = x.new_empty(sum(into), *x.shape[1:])
    dist.all_to_all_single(received, x.contiguous(), into, out, group=group)
    return received


class _Exchange(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, out: list[int], into: list[int], group: dist.ProcessGroup) -> Tensor:
        ctx.out, ctx.into, ctx.group = out, into, group
        return _exchange(x, out, into, group)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None, None, None]:
        return _exchange(grad_outputs[0], ctx.into, ctx.out, ctx.group), None, None, None


class _Averaged(torch.autograd.Function):
    """``x`` itself; backward: the gradient divided by a number."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, number: int) -> Tensor:
        ctx.number = number
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None]:
        return grad_outputs[0] / ctx.number, None
