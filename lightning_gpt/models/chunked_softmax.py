"""Logits, softmax and gradients, one chunk of tokens at a time, in buffers that all chunks reuse.

Three layouts of the same computation, each used where it is fastest (figures in ``docs/performance/where.md``):
:class:`VocabularyFirst` here, :class:`~lightning_gpt.models.tokens_first.TokensFirst` for half precision, and
:class:`~lightning_gpt.models.one_pass.OnePass` for GPUs.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

_LOG2_E = 1 / math.log(2)
_GPU_VALUES = 2**28
_ALIGNED = 64  # values per row: whole cache lines, and the 16-byte alignment of matrix units


@dataclass(frozen=True)
class Terms:
    """Loss terms besides the NLL: label smoothing ε (target share spread over the vocabulary), z-loss weight ζ."""

    label_smoothing: float = 0.0
    z_loss: float = 0.0

    def loss(self, log_z: Tensor, target: Tensor, mean: Tensor | None) -> Tensor:
        """``log Z − (1 − ε) z_target − ε · mean z + ζ log² Z``, each ``(tokens,)``; ``mean`` is None if ε is 0."""
        loss = log_z - (1 - self.label_smoothing) * target + self.z_loss * log_z**2
        return loss if mean is None else loss - self.label_smoothing * mean


class Chunks(ABC):
    """Computes losses and gradients of one chunk of tokens at a time.

    Args:
        weight: The unembedding ``(vocab_size, dim)``, in the precision of the products.
        size: Number of tokens in the largest chunk.
        terms: Loss terms besides the negative log-likelihood.
    """

    def __init__(self, weight: Tensor, size: int, terms: Terms) -> None:
        self.weight, self.size, self.terms = weight, size, terms

    def weight_sum(self, dtype: torch.dtype) -> Tensor:
        """Zeros ``(vocab_size, dim)`` to which :meth:`gradients` adds the gradient of the weight, chunk by chunk."""
        return torch.zeros_like(self.weight, dtype=dtype)

    @abstractmethod
    def losses(self, hidden: Tensor, labels: Tensor) -> Tensor:
        """The loss of each token, ``(tokens,)``, in fp32 or better, from ``hidden`` ``(tokens, dim)``."""

    @abstractmethod
    def gradients(
        self, hidden: Tensor, labels: Tensor, counts: Tensor, grad_hidden: Tensor | None, grad_weight: Tensor | None
    ) -> None:
        """Compute the gradients of the sum of the losses just computed, over the tokens where ``counts`` is true.

        ``hidden`` and ``labels`` are those given to :meth:`losses`, ``counts`` is boolean ``(tokens,)``. Unless None,
        ``grad_hidden`` ``(tokens, dim)`` is overwritten and ``grad_weight``, from :meth:`weight_sum`, is accumulated
        into.
        """


class VocabularyFirst(Chunks):
    """Logits ``(vocab_size, tokens)`` in units of log 2: fp32 and fp64 on a CPU.

    The logits product runs at the processor's peak in this layout, and at half of it in the other. The exponentials are
    powers of 2, three times as fast as powers of e. They are never normalised; the much smaller hidden states are
    divided by the sum instead.
    """

    def __init__(self, weight: Tensor, size: int, terms: Terms) -> None:
        super().__init__(weight, size, terms)
        self._array = weight.new_empty(len(weight) * size)

    @staticmethod
    def working_bytes(size: int, vocab_size: int, dim: int, dtype: torch.dtype, device: str) -> int:
        """What a chunk of ``size`` tokens takes: the logits, and the hidden states scaled."""
        return (vocab_size + dim) * size * dtype.itemsize

    def losses(self, hidden: Tensor, labels: Tensor) -> Tensor:
        n = len(hidden)
        z = self._array[: len(self.weight) * n].view(-1, n)  # (V, n)
        torch.mm(self.weight, (hidden * _LOG2_E).T, out=z)
        # gather rejects labels outside the vocabulary; indexing would accept negative ones
        largest, target = z.amax(dim=0), z.gather(0, labels[None]).squeeze(0)
        mean = z.mean(dim=0) / _LOG2_E if self.terms.label_smoothing else None
        self._powers = z.sub_(largest).exp2_()
        self._sum = z.sum(dim=0)
        self._log_z = (self._sum.log2() + largest) / _LOG2_E
        return self.terms.loss(self._log_z, target / _LOG2_E, mean)

    def gradients(
        self, hidden: Tensor, labels: Tensor, counts: Tensor, grad_hidden: Tensor | None, grad_weight: Tensor | None
    ) -> None:
        # gradient in the logits, times the sum: p (1 + 2 ζ log Z) − (1 − ε) one-hot − ε / V with p = power / sum
        gradient, total, terms = self._powers, self._sum, self.terms
        if terms.z_loss:
            gradient *= 1 + 2 * terms.z_loss * self._log_z
        if terms.label_smoothing:
            gradient -= total * (terms.label_smoothing / self.vocab_size)
        self.subtract_at_targets(gradient, labels, total * (1 - terms.label_smoothing))
        scale = (counts / total)[:, None]
        if grad_hidden is not None:
            torch.mm(gradient.T, self.weight, out=grad_hidden)
            grad_hidden *= scale
        if grad_weight is not None:
            grad_weight.addmm_(gradient, hidden * scale)

    @property
    def vocab_size(self) -> int:
        """The number of tokens in the vocabulary."""
        return len(self.weight)

    def subtract_at_targets(self, gradient: Tensor, labels: Tensor, amount: Tensor) -> None:
        """Subtract ``amount`` ``(tokens,)`` from each token's column of the gradient, in the row of its target."""
        gradient[labels, torch.arange(len(labels))] -= amount


def spare_values(vocab_size: int) -> int:
    """Values that fill up a row of logits."""
    return -vocab_size % _ALIGNED


def chunk_size(tokens: int, vocab_size: int, dtype: torch.dtype, device: torch.device) -> int:
    """Tokens per chunk: enough for an efficient product, few enough to use little memory; a multiple of 64 on CPU.

    On a GPU it is a power of two, 4,096 for 50,257 token ids, or half of the tokens: never all logits of a step.
    """
    if device.type != "cpu":
        most = 1 << (_GPU_VALUES // vocab_size).bit_length() - 1 if vocab_size <= _GPU_VALUES else 1
        return max(1, min(tokens, max(64, -(-tokens // 2)), max(64, most)))
    values = 13 * 2**20 if dtype.itemsize >= 4 else 26 * 2**20  # 55 MB either way
    return max(1, min(tokens, max(64, values // vocab_size // 64 * 64)))
