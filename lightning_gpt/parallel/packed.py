"""Parameters kept in another form while a layout spreads them: fused weights in pieces, scalars as vectors of one.

The rows of a fused weight are those of its pieces one after another, such as Q, K and V. Divided in equal parts, it
would give one process the queries and another the values. So each piece becomes a parameter of its own, divided by its
own rows. In a checkpoint the pieces are joined again, under the name of the fused weight. Scalars are kept as vectors,
because ``fully_shard`` takes no others.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Piece:
    """A parameter's place in the one that it is a part of.

    Args:
        fused: The name of the fused parameter.
        dim: The dimension along which the pieces are joined; None for a scalar, whose only piece is a vector of one.
        start: Where it begins along that dimension.
        length: How long it is there.
    """

    fused: str
    dim: int | None
    start: int = 0
    length: int = 1


def joined(pieces: Sequence[tuple[Piece, Tensor]]) -> Tensor:
    """The whole tensor of all its pieces, in any order."""
    in_order = sorted(pieces, key=lambda each: each[0].start)
    dim = in_order[0][0].dim
    return in_order[0][1].view(()) if dim is None else torch.cat([tensor for _, tensor in in_order], dim)


Pieces = Mapping[str, Piece]
"""The pieces of fused parameters in a model, by their own names."""


def piece_names(parameter: str, pieces: Mapping[str, int]) -> list[str]:
    """The names of a parameter's pieces: ``weight_q``, ``weight_k``, ``weight_v``; its own name if it is not fused."""
    return [f"{parameter}_{piece}" for piece in pieces] if len(pieces) > 1 else [parameter]


def take_apart(module: nn.Module, parameter: str, pieces: Mapping[str, int], dim: int) -> list[str]:
    """Replace a fused parameter of a module by its pieces, in place; returns their names.

    Args:
        module: The module that owns the parameter.
        parameter: The parameter's name in the module.
        pieces: The names and lengths of the pieces, in order.
        dim: The dimension along which they are joined.
    """
    names, whole = piece_names(parameter, pieces), module.get_parameter(parameter)
    if len(names) > 1:
        del module._parameters[parameter]
        parts = torch.split(whole.detach(), list(pieces.values()), dim)
        for name, part in zip(names, parts, strict=True):
            module.register_parameter(name, nn.Parameter(part.clone(), requires_grad=whole.requires_grad))
    return names


def keep_scalars_as_vectors(model: nn.Module) -> Pieces:
    """Replace each parameter that is a scalar by a vector of one, in place; returns those."""
    kept: dict[nn.Module, list[str]] = {}
    for part in model.modules():
        for name, parameter in part._parameters.items():
            if parameter is not None and parameter.ndim == 0:
                part._parameters[name] = nn.Parameter(parameter.detach().view(1), parameter.requires_grad)
                kept.setdefault(part, []).append(name)
    # a block that layers share has a name for each of them
    paths = [(path, name) for path, part in model.named_modules(remove_duplicate=False) for name in kept.get(part, ())]
    names = [f"{path}.{name}" if path else name for path, name in paths]
    return {name: Piece(name, None) for name in names}
