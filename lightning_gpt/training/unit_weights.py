"""Matrices whose vectors along the stream keep length 1."""

import torch
import torch.nn.functional as F

from lightning_gpt.errors import CallError
from lightning_gpt.models import GPT, LanguageModel
from lightning_gpt.models.layer import Matrix, all_matrices

_MOST_SCALED = 2.0
"""A starting vector may be scaled by this much at most: a mean of unit vectors, as ``averaging`` saves, is shorter."""
_TABLES = ("vocabulary", "position")
"""What a table of vectors reads: its rows are the vectors that it adds to the stream."""


class UnitWeights:
    """After each step, every vector of a matrix that meets the stream is scaled to length 1.

    Loshchilov et al. 2024, "nGPT" (2410.01131), section 2.6, step 2: rows of what reads the stream and of the
    embeddings and the output head, columns of what writes to it. Training starts from such weights.

    Args:
        model: The model.

    Raises:
        CallError: The model has biases or is not a GPT.
    """

    def __init__(self, model: LanguageModel) -> None:
        if not isinstance(model, GPT):
            raise CallError(f"optimization.unit_weights is for a GPT; this model is a {model.name}")
        matrices = list(all_matrices(model))
        names = {id(parameter): name for name, parameter in model.named_parameters()}
        biases = [names[id(matrix.bias)] for matrix in matrices if matrix.bias is not None]
        if biases:
            remedy = "set model.bias to false" if model.config.bias else "leave out the part that has it"
            raise CallError(f"optimization.unit_weights needs a model without biases, and {biases[0]} is one: {remedy}")
        along = [(matrix.weight, _dimension(matrix)) for matrix in matrices]
        self._along = [(weight, dimension) for weight, dimension in along if dimension is not None]
        self._names = names

    def require(self) -> None:
        """Refuse vectors that the first step would make much longer or shorter, and so change the function.

        Raises:
            CallError: There is one, such as one that starts at 0.
        """
        for weight, dimension in self._along:
            if weight.is_meta:  # a model without weights, to count with
                continue
            lengths = weight.detach().float().norm(dim=dimension).flatten()
            for furthest in (float(lengths.min()), float(lengths.max())):
                if 1 / _MOST_SCALED <= furthest <= _MOST_SCALED:
                    continue
                raise CallError(
                    f"optimization.unit_weights starts from vectors of about length 1, and "
                    f"{self._names[id(weight)]} has one of length {furthest:.3g}: leave out what starts weights at 0 "
                    f"(zero_projections, grow), or start from a model that was trained with unit_weights"
                )

    @torch.no_grad()
    def apply(self) -> None:
        """Scale the vectors."""
        for weight, dimension in self._along:
            weight.copy_(F.normalize(weight, dim=dimension))


def _dimension(matrix: Matrix) -> int | None:
    """The dimension of a matrix that is the stream's; None if none is."""
    if matrix.source == "stream" or (matrix.source in _TABLES and matrix.target == "stream"):
        return -1
    return -2 if matrix.target == "stream" else None
