"""Loss and bits per byte over a whole split, whatever its batches and processes."""

import math

import torch
from torch import Tensor
from torchmetrics import Metric


class MeanLoss(Metric):
    """Total negative log-likelihood / total tokens, in nats, over all batches and all processes.

    ``exp`` of it is the perplexity. The sum is kept in float64, so that it does not depend on the batching.
    """

    is_differentiable = False
    higher_is_better = False
    full_state_update = False

    total_nll: Tensor
    total_counted: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("total_nll", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("total_counted", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, nll: Tensor, counted: Tensor) -> None:
        """Add tokens: their ``nll`` and what each is ``counted`` as, of one shape; what is not counted is 0 in both."""
        self.total_nll += nll.double().sum()
        self.total_counted += counted.sum()

    def compute(self) -> Tensor:
        """The mean in nats; nan where no token was counted."""
        return self.total_nll / self.total_counted


class BitsPerByte(MeanLoss):
    """Total negative log-likelihood in bits / total bytes of text, over all batches and all processes.

    What compares models of different vocabularies: a byte is the same whatever it was split into. The tokens that end
    documents cost bits and are no bytes of text. :meth:`update` is given how many bytes each token stands for.
    """

    def compute(self) -> Tensor:
        """Bits a byte; nan where no byte was counted."""
        return super().compute() / math.log(2)
