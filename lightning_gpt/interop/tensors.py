"""How a tensor of ours is made of published ones, and back, without changing a bit."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

Pieces = Mapping[str, int]
"""The matrices that a tensor of ours concatenates along its rows, as the layer says: their names and lengths."""


@dataclass(frozen=True)
class Published(ABC):
    """The published tensors that hold the same numbers as one of ours.

    Args:
        names: Their names without the ending (``.weight`` or ``.bias``); ``{layer}`` is the number of the layer.
    """

    names: tuple[str, ...]
    transposes: ClassVar[bool] = False
    """Whether the rows of ours are columns there."""

    def __init__(self, *names: str) -> None:
        object.__setattr__(self, "names", names)

    def named(self, ending: str, layer: int | None, n_expert: int) -> list[str]:
        """The names in a file, in the order of :meth:`split`."""
        return [name.format(layer=layer) + ending for name in self.names]

    @abstractmethod
    def join(self, theirs: Sequence[Tensor], pieces: Pieces, n_head: int) -> Tensor:
        """The tensor of ours that is made of ``theirs``."""

    @abstractmethod
    def split(self, ours: Tensor, pieces: Pieces, n_head: int) -> list[Tensor]:
        """The published tensors that ``ours`` is made of."""


class InPieces(Published):
    """One tensor for each piece, or the tensor as it is."""

    def join(self, theirs: Sequence[Tensor], pieces: Pieces, n_head: int) -> Tensor:
        return theirs[0] if len(theirs) == 1 else torch.cat(list(theirs))

    def split(self, ours: Tensor, pieces: Pieces, n_head: int) -> list[Tensor]:
        return [ours] if len(self.names) == 1 else list(torch.split(ours, list(pieces.values())))


class Transposed(Published):
    """A matrix whose rows are inputs, as in GPT-2's ``Conv1D``; biases are as they are."""

    transposes = True

    def join(self, theirs: Sequence[Tensor], pieces: Pieces, n_head: int) -> Tensor:
        return theirs[0].T if theirs[0].ndim == 2 else theirs[0]

    def split(self, ours: Tensor, pieces: Pieces, n_head: int) -> list[Tensor]:
        return [ours.T if ours.ndim == 2 else ours]


class HeadByHead(Published):
    """Pieces of equal length whose rows are sorted by head first: q, k and v of head 0, then those of head 1."""

    def join(self, theirs: Sequence[Tensor], pieces: Pieces, n_head: int) -> Tensor:
        by_head = theirs[0].view(n_head, len(pieces), -1, *theirs[0].shape[1:])
        return by_head.transpose(0, 1).flatten(0, 2)

    def split(self, ours: Tensor, pieces: Pieces, n_head: int) -> list[Tensor]:
        by_piece = ours.view(len(pieces), n_head, -1, *ours.shape[1:])
        return [by_piece.transpose(0, 1).flatten(0, 2)]


class EachExpert(Published):
    """One tensor for each piece of each expert, where ours is a stack; ``{expert}`` is the number of the expert."""

    def named(self, ending: str, layer: int | None, n_expert: int) -> list[str]:
        places = ((expert, name) for expert in range(n_expert) for name in self.names)
        return [name.format(layer=layer, expert=expert) + ending for expert, name in places]

    def join(self, theirs: Sequence[Tensor], pieces: Pieces, n_head: int) -> Tensor:
        n_piece = len(self.names)
        return torch.stack([torch.cat(list(theirs[at : at + n_piece])) for at in range(0, len(theirs), n_piece)])

    def split(self, ours: Tensor, pieces: Pieces, n_head: int) -> list[Tensor]:
        lengths = list(pieces.values()) if len(self.names) > 1 else [ours.shape[1]]
        return [piece for expert in ours for piece in torch.split(expert, lengths)]


class ByItsName(InPieces):
    """A tensor whose published name is whole as it stands, without an ending."""

    def named(self, ending: str, layer: int | None, n_expert: int) -> list[str]:
        return [name.format(layer=layer) for name in self.names]


class TransposedExperts(ByItsName):
    """A stack of experts whose matrices have a row for each input; biases are as they are.

    Pieces alternate: the published outputs 0, 1, 2, ... are output 0 of the first piece, output 0 of the second, output
    1 of the first, and so on.
    """

    def join(self, theirs: Sequence[Tensor], pieces: Pieces, n_head: int) -> Tensor:
        outputs = theirs[0].mT if theirs[0].ndim == 3 else theirs[0]  # (experts, outputs, ...)
        return _swapped(outputs, 1, -1, max(len(pieces), 1))

    def split(self, ours: Tensor, pieces: Pieces, n_head: int) -> list[Tensor]:
        mixed = _swapped(ours, 1, max(len(pieces), 1), -1)
        return [mixed.mT if mixed.ndim == 3 else mixed]


class HalvesApart(Published):
    """One tensor for each piece, with the first halves of all heads before the second halves of all heads."""

    def join(self, theirs: Sequence[Tensor], pieces: Pieces, n_head: int) -> Tensor:
        half = len(theirs[0]) // n_head // 2
        return torch.cat([_swapped(each, 0, 2, -1, half) for each in theirs])

    def split(self, ours: Tensor, pieces: Pieces, n_head: int) -> list[Tensor]:
        half = pieces["q"] // n_head // 2
        parts = torch.split(ours, list(pieces.values()))
        return [_swapped(part, 0, -1, 2, half) for part in parts]


def _swapped(x: Tensor, dim: int, *sizes: int) -> Tensor:
    """``x`` with dimension ``dim`` read as several of ``sizes``, of which the first two change places."""
    return x.reshape(*x.shape[:dim], *sizes, *x.shape[dim + 1 :]).transpose(dim, dim + 1).reshape(x.shape)
