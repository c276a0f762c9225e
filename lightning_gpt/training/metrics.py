"""Loss and bits per byte over a whole split, independent of batch size and number of processes."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import Module
from torchmetrics import Metric

from lightning_gpt.models.double import double, has_double


class MeanLoss(Metric):
    """Total negative log-likelihood / total tokens, in nats, over all batches and all processes.

    Its exponential is the perplexity. The sum is kept in float64, so that it does not depend on the batching; on a
    device without float64 the sums of batches are added in fp32.
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

    def _apply(self, fn: Callable[[Tensor], Tensor], exclude_state: Sequence[str] = "") -> Module:
        """Move the sums, as ``fn`` moves a tensor; their types stay, also where a module is made bf16 or fp16."""
        device = fn(torch.zeros(0, device=self.total_nll.device)).device
        if not has_double(device):
            self._defaults["total_nll"] = torch.zeros(())
            self.total_nll = self.total_nll.float()
        return super()._apply(lambda state: state.to(device), exclude_state)

    def update(self, nll: Tensor, counted: Tensor) -> None:
        """Add tokens.

        Args:
            nll: Their negative log-likelihoods in nats; 0 for tokens that do not count.
            counted: What each counts as, of the same shape: 1 (True), a number of bytes, or 0 for not at all.
        """
        self.total_nll += double(nll).sum().to(self.total_nll)
        self.total_counted += counted.sum()

    def compute(self) -> Tensor:
        """The mean in nats; nan if no token was counted."""
        return self.total_nll / self.total_counted


class BitsPerByte(MeanLoss):
    """Total negative log-likelihood in bits / total bytes of text, over all batches and all processes.

    It compares models with different vocabularies, because bytes do not depend on how text was split into tokens. The
    tokens that end documents cost bits but stand for no bytes. :meth:`update` is given each token's number of bytes.
    """

    def compute(self) -> Tensor:
        """Bits per byte; nan if no byte was counted."""
        return super().compute() / math.log(2)
