"""How a model knows where a token stands: what every scheme answers, and the scheme that does nothing.

A scheme may act in three places, and most act in one: a vector added to the token's embedding, a rotation of queries
and keys, a number added to the scaled scores. Positions are whole numbers from 0, ``(time,)`` or ``(batch, time)``.
What is computed from them is computed in fp32 or better, whatever the weights are.
"""

import torch
from torch import Tensor

from lightning_gpt.errors import CallError
from lightning_gpt.models.layer import Layer
from lightning_gpt.models.registry import Registry

position_schemes: Registry["Positions"] = Registry("position", "dim", "n_head", "block_size")


class Positions(Layer):
    """A scheme that does nothing; the others say where they act."""

    limit: int | None = None
    """The longest sequence, in tokens, where the scheme has one."""
    is_absolute: bool = False
    """Whether it adds to the embeddings where a token stands."""
    rotates: bool = False
    """Whether it rotates queries and keys."""
    biases: bool = False
    """Whether it adds to the scores."""

    def check_width(self, width: int, name: str = "a head's width") -> None:
        """Refuse vectors of a width that the scheme cannot act on; ``name`` is what a message calls it."""

    def embedding(self, time: int, positions: Tensor | None) -> Tensor:
        """Added to the embeddings of ``time`` tokens at ``positions`` (0 to time − 1 when None), of an absolute scheme.

        ``(time, dim)`` or ``(batch, time, dim)``.
        """
        raise NotImplementedError

    def rotation(self, width: int, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Cosines and sines that rotate vectors of ``width`` at ``positions``, of a scheme that rotates.

        Each ``(time, width / 2)`` or ``(batch, 1, time, width / 2)``, in ``dtype``.
        """
        raise NotImplementedError

    def rotate(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Queries or keys ``(batch, n_head, time, width)`` rotated by what :meth:`rotation` gives."""
        raise NotImplementedError

    def bias(self, rows: Tensor, columns: Tensor, dtype: torch.dtype) -> Tensor:
        """Added to scaled scores, of a scheme that biases: ``(n_head, rows, columns)``, or with a batch before it."""
        raise NotImplementedError


@position_schemes.register("none")
class NoPositions(Positions):
    """Nothing but the causal mask tells order: Kazemnejad et al. 2023 (2305.19466)."""


def positions_within(documents: Tensor) -> Tensor:
    """The position of each token in its document, from document numbers ``(batch, time)``."""
    place = torch.arange(documents.shape[1], device=documents.device).expand_as(documents)
    begins = torch.ones_like(documents, dtype=torch.bool)
    begins[:, 1:] = documents[:, 1:] != documents[:, :-1]
    return place - torch.where(begins, place, 0).cummax(dim=1).values


def frequencies(width: int, base: float, device: torch.device | None = None) -> Tensor:
    """``base^(−2i/width)`` for i below width / 2, in fp32, computed in fp64."""
    return (base ** (-torch.arange(0, width, 2, dtype=torch.float64, device=device) / width)).float()


def require_even(width: int, what: str, name: str) -> None:
    """Refuse an odd width, of which no pairs can be made."""
    if width % 2:
        raise CallError(f"{what} act on pairs of dimensions and {name} is {width}; it must be even")
