"""The weights and the optimizer state of a model that is spread over a mesh, as one process would have them.

Names, shapes and order are those of the model before it was laid out, whatever the layout: the pieces of a fused weight
are joined, and parts are gathered.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from lightning_gpt.parallel.packed import Packed

Joined = Callable[[dict[str, Any]], dict[str, Any]]
"""Joins mappings that several processes have."""


@dataclass(frozen=True)
class _Piece:
    """A parameter's place in the tensor that one process would have."""

    name: str  # of that tensor
    dim: int = 0  # along which pieces are joined
    number: int = 0  # of this piece


def _pieces(module: nn.Module) -> dict[str, _Piece]:
    """Every parameter that is a piece of a fused one, by its name."""
    found = {}
    for prefix, part in module.named_modules():
        if isinstance(part, Packed):
            for fused, names in part.joined.items():
                for number, name in enumerate(names):
                    path = f"{prefix}.{name}" if prefix else name
                    found[path] = _Piece(f"{prefix}.{fused}" if prefix else fused, part.rows_dim(fused), number)
    return found


def _gathered(tensor: Tensor) -> Tensor:
    with torch.no_grad():
        return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor.detach()


def _joined(tensors: Iterator[tuple[str, Tensor]], pieces: Mapping[str, _Piece], keep: bool) -> dict[str, Tensor]:
    """The whole tensors by name, on the CPU; all processes must call it, and those that do not ``keep`` get none."""
    whole: dict[str, Tensor] = {}
    open_pieces: dict[str, list[Tensor]] = {}
    for name, tensor in tensors:
        full = _gathered(tensor)
        if not keep:
            continue
        full, piece = full.cpu(), pieces.get(name)
        if piece is None:
            whole[name] = full
            continue
        open_pieces.setdefault(piece.name, []).append(full)
        whole[piece.name] = full  # keeps the order; replaced below
    for name, parts in open_pieces.items():
        dim = next(piece.dim for piece in pieces.values() if piece.name == name)
        whole[name] = torch.cat(parts, dim)
    return whole


def whole_state(module: nn.Module, keep: bool) -> dict[str, Tensor]:
    """The state dict that one process would have, on the CPU.

    All processes must call it.

    Args:
        module: A module whose parameters may be DTensors or pieces of fused ones.
        keep: Whether this process needs it; others get an empty one.
    """
    return _joined(iter(module.state_dict().items()), _pieces(module), keep)


def _part_of(whole: Tensor, like: Tensor) -> Tensor:
    """This process's part of a whole tensor that is spread as ``like`` is."""
    if not isinstance(like, DTensor):
        return whole
    shape, offset = compute_local_shape_and_global_offset(like.shape, like.device_mesh, like.placements)
    for dim, (start, length) in enumerate(zip(offset, shape, strict=True)):
        whole = whole.narrow(dim, start if length else 0, length)
    return whole


def _piece_of(whole: Tensor, piece: _Piece | None, sizes: Callable[[str], list[int]]) -> Tensor:
    if piece is None:
        return whole
    return torch.split(whole, sizes(piece.name), piece.dim)[piece.number]


def _sizes(module: nn.Module, pieces: Mapping[str, _Piece]) -> Callable[[str], list[int]]:
    """The lengths of a fused tensor's pieces, in order, by the fused name."""
    lengths: dict[str, list[int]] = {}
    parameters = dict(module.named_parameters())
    for name, piece in pieces.items():
        lengths.setdefault(piece.name, []).append(parameters[name].shape[piece.dim])
    return lengths.__getitem__


@torch.no_grad()
def load_whole(module: nn.Module, state: Mapping[str, Tensor], strict: bool = True) -> None:
    """Copy a state dict as one process has it into a module that is spread over a mesh.

    Raises:
        RuntimeError: A name is missing or unknown, with ``strict``.
    """
    pieces = _pieces(module)
    sizes, own = _sizes(module, pieces), module.state_dict()
    names = {name: pieces[name].name if name in pieces else name for name in own}
    wrong = sorted(set(names.values()) ^ set(state))
    if strict and wrong:
        raise RuntimeError(f"the state dict and the model differ in {', '.join(wrong)}")
    for name, tensor in own.items():
        if names[name] in state:
            whole = _piece_of(state[names[name]], pieces.get(name), sizes)
            target = tensor.to_local() if isinstance(tensor, DTensor) else tensor
            target.copy_(_part_of(whole, tensor))


class WholeOptimizer:
    """Reads and writes an optimizer's state as an optimizer of the model before it was laid out has it.

    Args:
        module: The module before it was laid out.
        optimizer: An optimizer of its parameters.
    """

    def __init__(self, module: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        names = {parameter: name for name, parameter in module.named_parameters()}
        self._groups = [[names[parameter] for parameter in group["params"]] for group in optimizer.param_groups]
        self._fixed = [
            {key: value for key, value in group.items() if key == "rows"} for group in optimizer.param_groups
        ]

    def state(
        self, module: nn.Module, optimizer: torch.optim.Optimizer, keep: bool, of_all_stages: Joined = dict
    ) -> dict[str, Any]:
        """The state dict that one process would have, on the CPU; empty where it is not kept.

        All processes must call it.

        Args:
            module: The module as it was laid out.
            optimizer: The optimizer of its parameters.
            keep: Whether this process needs what it has.
            of_all_stages: Joins what the stages of a pipeline have, in the first; empty in the others.
        """
        pieces, parameters = _pieces(module), dict(module.named_parameters())
        by_name: dict[str, dict[str, Any]] = {}
        states = {name: optimizer.state.get(parameter, {}) for name, parameter in parameters.items()}
        for key in dict.fromkeys(key for state in states.values() for key in state):
            held = {name: state[key] for name, state in states.items() if key in state}
            scalars = {name: value for name, value in held.items() if value.shape != parameters[name].shape}
            tensors = ((name, value) for name, value in held.items() if name not in scalars)
            joined = _joined(tensors, pieces, keep)
            for name, value in scalars.items():
                joined[pieces[name].name if name in pieces else name] = _gathered(value).cpu()
            for name, value in joined.items():
                by_name.setdefault(name, {})[key] = value
        options = self._options_by_name(optimizer, parameters, pieces)
        by_name, options = of_all_stages(by_name), of_all_stages(options)
        if not keep or not options:
            return {}
        order = [name for group in self._groups for name in group]
        groups, first = [], 0
        for members, fixed in zip(self._groups, self._fixed, strict=True):
            indices = list(range(first, first + len(members)))
            first += len(members)
            groups.append({**options[members[0]], **fixed, "params": indices} if members else {"params": []})
        state = {index: by_name[name] for index, name in enumerate(order) if name in by_name}
        return {"state": state, "param_groups": groups}

    @staticmethod
    def _options_by_name(
        optimizer: torch.optim.Optimizer, parameters: Mapping[str, Tensor], pieces: Mapping[str, _Piece]
    ) -> dict[str, dict[str, Any]]:
        names = {parameter: name for name, parameter in parameters.items()}
        found = {}
        for group in optimizer.param_groups:
            options = {key: value for key, value in group.items() if key != "params"}
            for parameter in group["params"]:
                name = names[parameter]
                found[pieces[name].name if name in pieces else name] = options
        return found

    def load(self, module: nn.Module, optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
        """Load a state dict as one process has it into an optimizer of the laid-out module.

        Raises:
            ValueError: Its groups are those of another optimizer.
        """
        pieces, parameters = _pieces(module), dict(module.named_parameters())
        names, sizes = {parameter: name for name, parameter in parameters.items()}, _sizes(module, pieces)
        if [len(group["params"]) for group in state["param_groups"]] != [len(group) for group in self._groups]:
            raise ValueError("the checkpoint's optimizer has other parameter groups")
        indices, options = {}, {}
        for members, group in zip(self._groups, state["param_groups"], strict=True):
            for name, index in zip(members, group["params"], strict=True):
                indices[name] = index
                options[name] = {key: value for key, value in group.items() if key not in ("params", "rows")}
        loaded: dict[int, dict[str, Any]] = {}
        groups: list[dict[str, Any]] = []
        number = 0
        for group in optimizer.param_groups:
            first = number
            for parameter in group["params"]:
                piece = pieces.get(names[parameter])
                whole = piece.name if piece is not None else names[parameter]
                saved = state["state"].get(indices[whole])
                if saved is not None:
                    loaded[number] = {key: self._spread(value, parameter, piece, sizes) for key, value in saved.items()}
                number += 1
            members = group["params"]
            name = names[members[0]]
            kept = {key: value for key, value in group.items() if key != "params"}
            given = options[pieces[name].name if name in pieces else name]
            groups.append({**kept, **given, "params": list(range(first, number))})
        optimizer.load_state_dict({"state": loaded, "param_groups": groups})

    @staticmethod
    def _spread(value: Any, like: Tensor, piece: _Piece | None, sizes: Callable[[str], list[int]]) -> Any:
        if not isinstance(value, Tensor) or value.ndim == 0:
            return value
        part = _part_of(_piece_of(value, piece, sizes), like)
        if not isinstance(like, DTensor):
            return part
        local = part.to(like.to_local().device).clone(memory_format=torch.contiguous_format)
        return DTensor.from_local(
            local, like.device_mesh, like.placements, run_check=False, shape=like.shape, stride=like.stride()
        )
