"""How a model encodes positions: the interface of position schemes, and the scheme without positions.

A scheme can act in three places, and most act in one: a vector added to the token embedding, a rotation of queries and
keys, or a bias added to the scaled scores. Positions are integers from 0, ``(time,)`` or ``(batch, time)``. Everything
derived from them is computed in fp32 or better, regardless of the weights' dtype.
"""

import torch
from torch import Tensor

from lightning_gpt.errors import CallError
from lightning_gpt.models.double import has_double
from lightning_gpt.models.layer import Cut, Layer
from lightning_gpt.models.registry import Registry

position_schemes: Registry["Positions"] = Registry("position", "dim", "n_head", "block_size")


class Positions(Layer):
    """Base class of position schemes; by itself it does nothing."""

    limit: int | None = None
    """The longest sequence, in tokens; None if unlimited."""
    knows_length: bool = False
    """Whether the model's ``block_size`` is part of what it computes."""
    is_absolute: bool = False
    """Whether it adds position vectors to the embeddings."""
    rotates: bool = False
    """Whether it rotates queries and keys."""
    biases: bool = False
    """Whether it adds to the scores."""

    def check_width(self, width: int, name: str = "a head's width") -> None:
        """Raise a CallError if the scheme cannot act on vectors of this width; ``name`` names it in the message."""

    def cut(self) -> Cut | None:
        """Nothing is divided, unless the scheme adds to the scores of each head; such a scheme overrides this."""
        return None if self.biases else Cut(alike=tuple(name for name, _ in self.named_parameters(recurse=False)))

    def embedding(self, time: int, positions: Tensor | None) -> Tensor:
        """Position vectors for ``time`` tokens at ``positions`` (0 to time − 1 if None); for absolute schemes.

        ``(time, dim)`` or ``(batch, time, dim)``.
        """
        raise NotImplementedError

    def rotation(self, width: int, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Cosines and sines that rotate vectors of ``width`` at ``positions``; for schemes that rotate.

        Each ``(time, width / 2)`` or ``(batch, 1, time, width / 2)``, in ``dtype``.
        """
        raise NotImplementedError

    def rotate(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Rotate queries or keys ``(batch, n_head, time, width)`` by the result of :meth:`rotation`."""
        raise NotImplementedError

    def bias(self, rows: Tensor, columns: Tensor, dtype: torch.dtype) -> Tensor:
        """Bias added to scaled scores; for schemes that bias.

        ``(n_head, rows, columns)``, or with a leading batch dimension.
        """
        raise NotImplementedError


@position_schemes.register("none")
class NoPositions(Positions):
    """No positions: only the causal mask conveys order. Kazemnejad et al. 2023 (2305.19466)."""


def positions_within(documents: Tensor) -> Tensor:
    """The position of each token in its document, from document numbers ``(batch, time)``."""
    place = torch.arange(documents.shape[1], device=documents.device).expand_as(documents)
    begins = torch.ones_like(documents, dtype=torch.bool)
    begins[:, 1:] = documents[:, 1:] != documents[:, :-1]
    return place - torch.where(begins, place, 0).cummax(dim=1).values


def frequencies(width: int, base: float, device: torch.device | None = None) -> Tensor:
    """``base^(−2i/width)`` for i below width / 2, in fp32, computed in fp64."""
    where = device if has_double(device) else torch.device("cpu")
    return (base ** (-torch.arange(0, width, 2, dtype=torch.float64, device=where) / width)).float().to(device=device)


def require_even(width: int, what: str, name: str) -> None:
    """Raise a CallError for an odd width, which cannot be split into pairs."""
    if width % 2:
        raise CallError(f"{what} act on pairs of dimensions, so {name} must be even; it is {width}")
