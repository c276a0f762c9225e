"""The weights of a model that is spread over a mesh, as one process would have them; an optimizer that follows it.

Names, shapes and order are those of the model before it was laid out, whatever the layout: the pieces of a fused weight
are joined, and parts are gathered.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from lightning_gpt.parallel.packed import Piece, Pieces, joined


def whole_name(name: str, pieces: Pieces) -> str:
    """The name of the parameter that a parameter is, or is a piece of."""
    return pieces[name].fused if name in pieces else name


@torch.no_grad()
def gathered_state(tensors: Iterable[tuple[str, Tensor]], pieces: Pieces, keep: bool) -> dict[str, Tensor]:
    """Whole tensors by name, on the CPU.

    All processes must call it.

    Args:
        tensors: The tensors with their names, in the same order in every process; DTensors are gathered.
        pieces: Which of the names are pieces of fused parameters, which are joined.
        keep: Whether this process needs the result; others get an empty one.
    """
    whole: dict[str, Tensor] = {}
    parts: dict[str, list[tuple[Piece, Tensor]]] = defaultdict(list)
    for name, tensor in tensors:
        full = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
        if not keep:
            continue
        whole[whole_name(name, pieces)] = full.detach().cpu()
        if name in pieces:
            parts[pieces[name].fused].append((pieces[name], full.detach().cpu()))
    return whole | {name: joined(found) for name, found in parts.items()}


def whole_state(module: nn.Module, pieces: Pieces, keep: bool) -> dict[str, Tensor]:
    """The state dict that one process would have; all processes must call it. See :func:`gathered_state`."""
    return gathered_state(module.state_dict().items(), pieces, keep)


def own_part(whole: Tensor, like: Tensor) -> Tensor:
    """This process's part of a whole tensor.

    Args:
        whole: The tensor.
        like: A parameter of its shape, which is spread in the same way.
    """
    if isinstance(like, DTensor):
        shape, offset = compute_local_shape_and_global_offset(like.shape, like.device_mesh, like.placements)
        for dim, (start, length) in enumerate(zip(offset, shape, strict=True)):
            whole = whole.narrow(dim, start if length else 0, length)
    return whole


@torch.no_grad()
def whole_like(part: Tensor, like: DTensor) -> Tensor:
    """The whole of which each process has a part, spread as ``like`` is; all processes must call it."""
    return DTensor.from_local(
        part, like.device_mesh, like.placements, run_check=False, shape=like.shape, stride=like.stride()
    ).full_tensor()


class WholeOptimizer:
    """Hands an optimizer that was made for a whole model the parameters of the model once it is laid out.

    Its groups and their options stay, and with them what the whole model alone can say: which weights decay, their
    rates, and which matrices Muon takes.

    Args:
        module: The module before it is laid out.
        optimizer: An optimizer of its parameters, without state yet.
    """

    def __init__(self, module: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        names = {parameter: name for name, parameter in module.named_parameters()}
        self.optimizer = optimizer
        self._groups = [[names[parameter] for parameter in group["params"]] for group in optimizer.param_groups]

    def follow(self, module: nn.Module, pieces: Pieces) -> None:
        """Take the parameters of the module after it was laid out.

        Args:
            module: The module; parameters that this process does not have are left out.
            pieces: Which of its parameters are pieces of fused ones.
        """
        of_name: dict[str, list[nn.Parameter]] = defaultdict(list)
        for name, parameter in module.named_parameters():
            of_name[whole_name(name, pieces)].append(parameter)
        for group, members in zip(self.optimizer.param_groups, self._groups, strict=True):
            group["params"] = [parameter for name in members for parameter in of_name[name]]

    def named_as_whole(self, groups: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """The parameter groups of a state dict, with the names of the parameters that one process has."""
        return [{**group, "params": list(names)} for group, names in zip(groups, self._groups, strict=True)]
