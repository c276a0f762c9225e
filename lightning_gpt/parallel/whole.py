"""The weights and the optimizer state of a model that is spread over a mesh, as one process would have them.

Names, shapes and order are those of the model before it was laid out, whatever the layout: the pieces of a fused weight
are joined, and parts are gathered.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from lightning_gpt.parallel.packed import Piece, Pieces, joined

JoinStages = Callable[[Mapping[str, Any]], dict[str, Any]]
"""Joins what several processes have by name."""


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


def own_part(whole: Tensor, like: Tensor, piece: Piece | None) -> Tensor:
    """This process's part of a whole tensor.

    Args:
        whole: The tensor that one process would have.
        like: The parameter here, which is spread in the same way.
        piece: Which piece of the whole the parameter is; None if it is all of it.
    """
    if piece is not None:
        whole = piece.taken_from(whole)
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


@torch.no_grad()
def load_whole(module: nn.Module, state: Mapping[str, Tensor], pieces: Pieces, strict: bool = True) -> None:
    """Copy a state dict as one process has it into a module that is spread over a mesh.

    Raises:
        RuntimeError: A name is missing or unknown, with ``strict``.
    """
    own = module.state_dict()
    wrong = sorted({whole_name(name, pieces) for name in own} ^ set(state))
    if strict and wrong:
        raise RuntimeError(f"the state dict and the model differ in {', '.join(wrong)}")
    for name, tensor in own.items():
        if whole_name(name, pieces) in state:
            target = tensor.to_local() if isinstance(tensor, DTensor) else tensor
            target.copy_(own_part(state[whole_name(name, pieces)], tensor, pieces.get(name)))


class WholeOptimizer:
    """Hands an optimizer that was made for a whole model the parameters of the model once it is laid out.

    Its groups and their options stay, and with them what the whole model alone can say: which weights decay, their
    rates, and which matrices Muon takes. Its state is read and written as the whole model's.

    Args:
        module: The module before it is laid out.
        optimizer: An optimizer of its parameters, without state yet.
    """

    def __init__(self, module: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        names = {parameter: name for name, parameter in module.named_parameters()}
        self.optimizer = optimizer
        self._groups = [[names[parameter] for parameter in group["params"]] for group in optimizer.param_groups]
        self._pieces: Pieces = {}
        self._parameters: dict[str, nn.Parameter] = {}

    def follow(self, module: nn.Module, pieces: Pieces) -> None:
        """Take the parameters of the module after it was laid out.

        Args:
            module: The module; parameters that this process does not have are left out.
            pieces: Which of its parameters are pieces of fused ones.
        """
        self._pieces, self._parameters = pieces, dict(module.named_parameters())
        of_name: dict[str, list[nn.Parameter]] = defaultdict(list)
        for name, parameter in self._parameters.items():
            of_name[whole_name(name, pieces)].append(parameter)
        for group, members in zip(self.optimizer.param_groups, self._groups, strict=True):
            group["params"] = [parameter for name in members for parameter in of_name[name]]

    def state_dict(self, keep: bool, of_all_stages: JoinStages = dict) -> dict[str, Any]:
        """The state dict that one process would have, on the CPU; empty where it is not kept.

        All processes must call it.

        Args:
            keep: Whether this process needs what it has.
            of_all_stages: Joins what the stages of a pipeline have, in the first; empty in the others.
        """
        states = {name: self.optimizer.state.get(each, {}) for name, each in self._parameters.items()}
        by_name: dict[str, dict[str, Any]] = defaultdict(dict)
        for key in dict.fromkeys(key for state in states.values() for key in state):
            held = [(name, state[key]) for name, state in states.items() if key in state]
            if key == "step":  # a number, the same for all pieces
                whole = {whole_name(name, self._pieces): value.cpu() for name, value in held}
            else:
                whole = gathered_state(held, self._pieces, keep)
            for name, value in whole.items() if keep else ():
                by_name[name][key] = value
        by_name = of_all_stages(by_name)
        if not by_name:
            return {}
        state: dict[int, dict[str, Any]] = {}
        groups: list[dict[str, Any]] = []
        number = 0
        for members, group in zip(self._groups, self.optimizer.param_groups, strict=True):
            indices = list(range(number, number + len(members)))
            number += len(members)
            state |= {index: by_name[name] for index, name in zip(indices, members, strict=True) if name in by_name}
            groups.append({**{key: value for key, value in group.items() if key != "params"}, "params": indices})
        return {"state": state, "param_groups": groups}

    def load_state_dict(self, whole: Mapping[str, Any]) -> None:
        """Load a state dict as one process has it.

        Raises:
            ValueError: Its groups are those of another optimizer.
        """
        if [len(group["params"]) for group in whole["param_groups"]] != [len(group) for group in self._groups]:
            raise ValueError("the state is that of an optimizer with other parameter groups")
        indices: dict[str, int] = {}
        for members, group in zip(self._groups, whole["param_groups"], strict=True):
            indices |= dict(zip(members, group["params"], strict=True))
        names = {parameter: name for name, parameter in self._parameters.items()}
        state: dict[int, dict[str, Any]] = {}
        groups: list[dict[str, Any]] = []
        number = 0
        for group, options in zip(self.optimizer.param_groups, whole["param_groups"], strict=True):
            first = number
            for parameter in group["params"]:
                name = names[parameter]
                saved = whole["state"].get(indices[whole_name(name, self._pieces)])
                if saved is not None:
                    piece = self._pieces.get(name)
                    state[number] = {
                        key: value if key == "step" else _spread(value, parameter, piece)
                        for key, value in saved.items()
                    }
                number += 1
            groups.append({**options, "params": list(range(first, number))})
        self.optimizer.load_state_dict({"state": state, "param_groups": groups})


def _spread(value: Tensor, like: Tensor, piece: Piece | None) -> Tensor:
    """A tensor of an optimizer's state, which has the shape of its parameter, as it is here."""
    part = own_part(value, like, piece)
    if not isinstance(like, DTensor):
        return part
    local = part.to(like.to_local().device).clone(memory_format=torch.contiguous_format)
    return DTensor.from_local(
        local, like.device_mesh, like.placements, run_check=False, shape=like.shape, stride=like.stride()
    )
