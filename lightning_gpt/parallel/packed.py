"""Fused weights by their pieces: several matrices that are multiplied as one, each divided on its own.

The rows of a fused weight are those of its pieces one after another, such as Q, K and V. Divided in equal parts, it
would give one process the queries and another the values. So each piece becomes a parameter of its own, divided by its
own rows. In a checkpoint the pieces are joined again, under the name of the fused weight.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn


@dataclass(frozen=True)
class Piece:
    """A parameter's place in the fused one that it is a part of.

    Args:
        fused: The name of the fused parameter.
        dim: The dimension along which the pieces are joined.
        start: Where it begins along that dimension.
        length: How long it is there.
    """

    fused: str
    dim: int
    start: int
    length: int


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
