"""The norm of a gradient whose parts are whole in some processes and divided over others, and clipping by it."""

from collections import defaultdict
from collections.abc import Iterable, Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from lightning_gpt.parallel.collectives import Group


def local(tensor: Tensor) -> Tensor:
    """This process's part of a tensor; the tensor itself if it is not divided."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def total_norm(tensors: Sequence[Tensor], over: Sequence[Group] = (), device: torch.device | None = None) -> Tensor:
    """The Euclidean norm of all tensors together, in fp32 or better, the same in every process; 0 if there are none.

    ``torch.nn.utils.get_total_norm`` takes no mixture of plain and distributed tensors, nor of two meshes.

    Args:
        tensors: Plain tensors, equal in all processes, and DTensors of any mesh.
        over: Groups whose processes hold different tensors, such as the stages of a pipeline.
        device: Where the norm is; torch's default if None.
    """
    if not over and not any(isinstance(tensor, DTensor) for tensor in tensors):
        return torch.nn.utils.get_total_norm([exact(tensor) for tensor in tensors])
    alike: dict[tuple[Group, ...], list[Tensor]] = defaultdict(list)
    for tensor in tensors:
        alike[_divided_over(tensor)].append(local(tensor))
    # groups in the order of the parameters, which is the same in every process
    total = torch.zeros((), device=device)
    for groups, parts in alike.items():
        filled = [exact(part) for part in parts if part.numel()]
        norms = torch._foreach_norm(filled) if filled else [exact(parts[0].new_zeros(()))]
        squared = torch.stack(list(norms)).square().sum()
        for group in groups:
            dist.all_reduce(squared, group=group)
        total = total + squared
    for group in over:
        dist.all_reduce(total, group=group)
    return total.sqrt()


def exact(tensor: Tensor) -> Tensor:
    """The tensor in fp32 or better."""
    return tensor.float() if tensor.itemsize < 4 else tensor


def _divided_over(tensor: Tensor) -> tuple[Group, ...]:
    """The groups over which a tensor's parts are spread."""
    if not isinstance(tensor, DTensor):
        return ()
    mesh, placements = tensor.device_mesh, tensor.placements
    assert not any(placement.is_partial() for placement in placements), "a gradient has not been summed"
    cut = [dim for dim, placement in enumerate(placements) if not placement.is_replicate() and mesh.size(dim) > 1]
    return tuple(mesh.get_group(dim) for dim in cut)


def gradients(parameters: Iterable[nn.Parameter]) -> list[Tensor]:
    """The gradients of those parameters that have one."""
    return [parameter.grad for parameter in parameters if parameter.grad is not None]


@torch.no_grad()
def clip_norm(tensors: Sequence[Tensor], most: float, norm: Tensor) -> None:
    """Scale gradients in place so that their norm, which is ``norm``, becomes at most ``most``.

    The factor is ``min(1, most / (norm + 1e-6))``, as in ``torch.nn.utils.clip_grad_norm_``.
    """
    factor = (most / (norm + 1e-6)).clamp(max=1.0)
    alike: dict[tuple[torch.device, torch.dtype], list[Tensor]] = defaultdict(list)
    for part in map(local, tensors):
        alike[part.device, part.dtype].append(part)
    for (device, dtype), parts in alike.items():
        torch._foreach_mul_(parts, factor.to(device, dtype))


@torch.no_grad()
def clip_value(tensors: Sequence[Tensor], most: float) -> None:
    """Limit each entry of gradients in place to ``-most`` … ``most``."""
    for tensor in tensors:
        local(tensor).clamp_(-most, most)
