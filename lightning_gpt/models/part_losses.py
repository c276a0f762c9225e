"""Terms that parts of a model add to the training loss, such as the losses that balance a mixture of experts."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from lightning_gpt.models.record import Watched


class Penalised(Watched):
    """A part that adds to the training loss: its forward pass gives each term to :meth:`penalise`."""

    _terms: list[Tensor] | None = None

    @property
    def in_loss(self) -> bool:
        """Whether the loss is made of this pass: not where it is run again for its gradient, nor in evaluation."""
        return self._terms is not None

    def penalise(self, term: Tensor) -> None:
        """Add a scalar to the loss that is being made; nothing where none is."""
        if self._terms is not None:
            self._terms.append(term)


@contextmanager
def penalties(model: nn.Module) -> Iterator[list[Tensor]]:
    """The terms of the forward pass that is made inside; none in evaluation and without gradients.

    A pass that checkpointing runs again stands outside, so that no term counts twice.
    """
    terms: list[Tensor] = []
    wanted = model.training and torch.is_grad_enabled()
    parts = [part for part in model.modules() if isinstance(part, Penalised)] if wanted else []
    for part in parts:
        part._terms = terms
    try:
        yield terms
    finally:
        for part in parts:
            part._terms = None


def penalised(loss: Tensor, terms: Iterable[Tensor]) -> Tensor:
    """``loss`` in value, ``loss + Σ terms`` in gradient, so that curves of models with and without terms compare."""
    for term in terms:
        loss = loss + (term - term.detach())
    return loss
