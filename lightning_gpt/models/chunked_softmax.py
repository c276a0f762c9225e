"""Logits, softmax and gradients of one chunk of tokens after another, in arrays that every chunk uses again.

Two layouts of the same computation, each used where it is faster (figures in ``docs/performance.md``):
:class:`VocabularyFirst` here, :class:`~lightning_gpt.models.tokens_first.TokensFirst` for half precision and GPUs.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

_LOG2_E = 1 / math.log(2)


@dataclass(frozen=True)
class Terms:
    """What a token's loss is made of besides its negative log-likelihood.

    Args:
        label_smoothing: ε: share of the target spread evenly over the vocabulary.
        z_loss: ζ: weight of ``log²Z``.
    """

    label_smoothing: float = 0.0
    z_loss: float = 0.0

    def loss(self, log_z: Tensor, target: Tensor, mean: Tensor | None) -> Tensor:
        """``log Z − (1 − ε) z_target − ε · mean z + ζ log² Z``, each ``(tokens,)``; ``mean`` only where ε is not 0."""
        loss = log_z - (1 - self.label_smoothing) * target + self.z_loss * log_z**2
        return loss if mean is None else loss - self.label_smoothing * mean


class Chunks(ABC):
    """Takes one chunk of tokens at a time.

    Args:
        weight: The unembedding ``(vocab_size, dim)`` in the precision of the products.
        size: Tokens of the largest chunk.
        terms: What a token's loss is made of.
    """

    def __init__(self, weight: Tensor, size: int, terms: Terms) -> None:
        self.weight, self.size, self.terms = weight, size, terms

    @abstractmethod
    def losses(self, hidden: Tensor, labels: Tensor) -> Tensor:
        """The loss of each token, ``(tokens,)``, in fp32 or better, from ``hidden`` ``(tokens, dim)``."""

    @abstractmethod
    def gradients(
        self, hidden: Tensor, labels: Tensor, counts: Tensor, grad_hidden: Tensor | None, grad_weight: Tensor | None
    ) -> None:
        """The gradients of the sum of the losses just computed, of those tokens that count.

        Args:
            hidden: As it was given.
            labels: As they were given.
            counts: ``(tokens,)`` booleans.
            grad_hidden: ``(tokens, dim)``, filled, where it is wanted.
            grad_weight: ``(vocab_size, dim)``, added to, where it is wanted.
        """


class VocabularyFirst(Chunks):
    """Logits ``(vocab_size, tokens)`` in units of log 2: fp32 and fp64 on a CPU.

    The product that makes the logits runs at the processor's peak this way round, and at half of it the other way. The
    exponentials are powers of 2, three times as fast as those of e. They are never normalised: the sum divides the
    hidden states instead, which are far fewer.
    """

    def __init__(self, weight: Tensor, size: int, terms: Terms) -> None:
        super().__init__(weight, size, terms)
        self._array = weight.new_empty(len(weight) * size)

    def losses(self, hidden: Tensor, labels: Tensor) -> Tensor:
        n = len(hidden)
        z = self._array[: len(self.weight) * n].view(-1, n)  # (V, n)
        torch.mm(self.weight, (hidden * _LOG2_E).T, out=z)
        # gather refuses a label outside the vocabulary, where an index would count from the end
        largest, target = z.amax(dim=0), z.gather(0, labels[None]).squeeze(0)
        mean = z.mean(dim=0) / _LOG2_E if self.terms.label_smoothing else None
        self._powers = z.sub_(largest).exp2_()
        self._sum = z.sum(dim=0)
        self._log_z = (self._sum.log2() + largest) / _LOG2_E
        return self.terms.loss(self._log_z, target / _LOG2_E, mean)

    def gradients(
        self, hidden: Tensor, labels: Tensor, counts: Tensor, grad_hidden: Tensor | None, grad_weight: Tensor | None
    ) -> None:
        # in the logits: p (1 + 2 ζ log Z) − (1 − ε) one-hot − ε / V with p = power / sum; here that times the sum
        gradient, total, terms = self._powers, self._sum, self.terms
        if terms.z_loss:
            gradient *= 1 + 2 * terms.z_loss * self._log_z
        if terms.label_smoothing:
            gradient -= total * (terms.label_smoothing / len(gradient))
        gradient[labels, torch.arange(len(labels))] -= total * (1 - terms.label_smoothing)
        scale = (counts / total)[:, None]
        if grad_hidden is not None:
            torch.mm(gradient.T, self.weight, out=grad_hidden)
            grad_hidden *= scale
        if grad_weight is not None:
            grad_weight.addmm_(gradient, hidden * scale)


def chunk_size(tokens: int, vocab_size: int, dtype: torch.dtype, device: torch.device) -> int:
    """Tokens of a chunk: many enough for an efficient product, few enough to be small beside the rest of a step.

    On a CPU a multiple of 64, where its products are fastest.
    """
    if device.type != "cpu":
        return min(tokens, max(64, 2**27 // vocab_size))
    values = 13 * 2**20 if dtype.itemsize >= 4 else 26 * 2**20  # 55 MB either way
    return max(1, min(tokens, max(64, values // vocab_size // 64 * 64)))
