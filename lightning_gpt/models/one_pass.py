"""Chunks of the loss on a GPU: softmax, loss and gradient of a chunk by one kernel, in the place of the logits."""

import importlib.util
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_gpt.models.chunked_softmax import Chunks, Terms, spare_values

KERNEL_DEVICES = ("cuda",)
"""Devices for which Triton compiles the kernel."""


@cache
def has_triton() -> bool:
    """Whether Triton is installed, which builds of torch for CPUs do not include."""
    return importlib.util.find_spec("triton") is not None


@torch.library.custom_op("lightning_gpt::softmax_gradient", mutates_args=("logits",))
def softmax_gradient(logits: Tensor, labels: Tensor, label_smoothing: float, z_loss: float) -> Tensor:
    """The loss of each row of ``logits`` ``(tokens, vocab_size)``; each logit becomes the gradient of its row's loss.

    Args:
        logits: In fp32 or half precision; a row's values are adjacent, rows may lie further apart.
        labels: The target of each token, ``(tokens,)``.
        label_smoothing: As in :class:`~lightning_gpt.models.chunked_softmax.Terms`.
        z_loss: Likewise.

    Returns:
        Losses ``(tokens,)`` in fp32; NaN for a label outside the vocabulary.
    """
    from lightning_gpt.models.softmax_kernel import launch  # needs Triton

    losses = torch.empty(len(logits), dtype=torch.float32, device=logits.device)
    launch(logits, labels, losses, label_smoothing, z_loss)
    return losses


@softmax_gradient.register_fake
def _shape(logits: Tensor, labels: Tensor, label_smoothing: float, z_loss: float) -> Tensor:
    return logits.new_empty(len(logits), dtype=torch.float32)


class OnePass(Chunks):
    """Logits ``(tokens, vocab_size)`` in the precision of the products, which their gradients overwrite.

    The vocabulary is filled up with ids that have a weight of 0 and are no part of the softmax: matrix units are up to
    seven times as fast when every size is a multiple of 64 (50,304 ids instead of 50,257, on an H100).
    """

    def __init__(self, weight: Tensor, size: int, terms: Terms) -> None:
        super().__init__(weight, size, terms)
        spare = spare_values(len(weight))
        self._filled = F.pad(weight, (0, 0, 0, spare)) if spare else weight
        self._logits = weight.new_empty(size, len(self._filled))

    @staticmethod
    def working_bytes(size: int, vocab_size: int, dim: int, dtype: torch.dtype, device: str) -> int:
        """What a chunk of ``size`` tokens takes: the logits, the gradient of the hidden states, the filled weight."""
        filled = vocab_size + spare_values(vocab_size)
        return (size * (filled + dim) + (filled * dim if filled > vocab_size else 0)) * dtype.itemsize

    def weight_sum(self, dtype: torch.dtype) -> Tensor:
        return torch.zeros_like(self._filled, dtype=dtype)[: len(self.weight)]

    def losses(self, hidden: Tensor, labels: Tensor) -> Tensor:
        logits = self._logits[: len(hidden)]
        torch.mm(hidden, self._filled.T, out=logits)
        of_ids = logits[:, : len(self.weight)]
        losses: Tensor = softmax_gradient(of_ids, labels, self.terms.label_smoothing, self.terms.z_loss)
        return losses

    def gradients(
        self, hidden: Tensor, labels: Tensor, counts: Tensor, grad_hidden: Tensor | None, grad_weight: Tensor | None
    ) -> None:
        gradient = self._logits[: len(hidden)]
        # tokens that do not count are taken out of the hidden states, which are far fewer numbers than the logits
        counted = counts[:, None]
        if grad_hidden is not None:
            torch.mul(gradient @ self._filled, counted, out=grad_hidden)
        if grad_weight is None:
            return
        rows, total = hidden * counted, grad_weight.as_strided(self._filled.shape, self._filled.stride())
        if total.dtype == gradient.dtype:
            total.addmm_(gradient.T, rows)
        elif total.is_cuda:
            # the product is summed in fp32 as it leaves the matrix units
            torch.addmm(total, gradient.T, rows, out_dtype=total.dtype, out=total)
        else:
            total += gradient.T @ rows
