"""Logits, softmax and gradients of one chunk of tokens after another, in arrays that every chunk uses again.

Two layouts of the same computation, each the faster where it is used (figures in ``docs/performance.md``):

- :class:`VocabularyFirst`, ``(vocab_size, tokens)``: fp32 and fp64 on a CPU. The product that makes the logits runs at
  the processor's peak this way round, and at half of it the other way. The exponentials are powers of 2, three times as
  fast as those of e, and are never normalised: the sum divides the hidden states instead, which are far fewer.
- :class:`TokensFirst`, ``(tokens, vocab_size)``: half precision, and everything on a GPU.
"""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

_LOG2_E = 1 / math.log(2)
_ROWS_TO_ADD = 4096
_TOKENS_IN_FP32 = 128


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
    """Logits ``(vocab_size, tokens)``, in units of log 2."""

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


class TokensFirst(Chunks):
    """Logits ``(tokens, vocab_size)``; softmax in fp32 or better, of half-precision logits a few tokens at a time."""

    def __init__(self, weight: Tensor, size: int, terms: Terms) -> None:
        super().__init__(weight, size, terms)
        exact = torch.promote_types(weight.dtype, torch.float32)
        self._logits = weight.new_empty(size, len(weight))
        self._rounds = exact != weight.dtype
        few = min(size, _TOKENS_IN_FP32) if weight.device.type == "cpu" else size
        self._few = few if self._rounds else size
        self._exact = weight.new_empty(few, len(weight), dtype=exact) if self._rounds else self._logits
        self._product: Tensor | None = None

    def losses(self, hidden: Tensor, labels: Tensor) -> Tensor:
        torch.mm(hidden, self.weight.T, out=self._logits[: len(hidden)])
        pieces = [self._losses(slice(i, i + self._few), labels) for i in range(0, len(hidden), self._few)]
        return torch.cat(pieces)

    def _losses(self, piece: slice, labels: Tensor) -> Tensor:
        """The losses of a few tokens; the gradient of each in its logits takes the logits' place."""
        labels, terms = labels[piece], self.terms
        logits = self._logits[piece.start : piece.start + len(labels)]
        z = self._exact[: len(labels)].copy_(logits) if self._rounds else logits
        largest, target = z.amax(dim=-1), z.gather(1, labels[:, None]).squeeze(1)
        mean = z.mean(dim=-1) if terms.label_smoothing else None
        softmax = torch.softmax(z, dim=-1, out=z)
        # log Z is read off the softmax, as log Z = largest − log max p: several times faster on CPU than logsumexp,
        # and as exact, because max p >= 1 / vocab_size never underflows
        log_z = largest - softmax.amax(dim=-1).log()
        if terms.z_loss:
            softmax *= (1 + 2 * terms.z_loss * log_z)[:, None]
        if terms.label_smoothing:
            softmax -= terms.label_smoothing / softmax.shape[1]
        softmax[torch.arange(len(labels), device=z.device), labels] -= 1 - terms.label_smoothing
        if self._rounds:
            logits.copy_(softmax)
        return terms.loss(log_z, target, mean)

    def gradients(
        self, hidden: Tensor, labels: Tensor, counts: Tensor, grad_hidden: Tensor | None, grad_weight: Tensor | None
    ) -> None:
        gradient = self._logits[: len(hidden)]
        # asking whether all count would make a GPU wait; there, masking costs next to nothing
        if gradient.device.type != "cpu" or not bool(counts.all()):
            gradient *= counts[:, None]
        if grad_hidden is not None:
            grad_hidden.copy_(gradient @ self.weight)
        if grad_weight is not None and grad_weight.dtype == gradient.dtype:
            grad_weight.addmm_(gradient.T, hidden)
        elif grad_weight is not None:
            if self._product is None:
                self._product = torch.empty_like(self.weight)
            _add(grad_weight, torch.mm(gradient.T, hidden, out=self._product))


def _add(total: Tensor, half: Tensor) -> None:
    """Add a matrix of half precision to one of fp32: turned in pieces that stay near, three times as fast on CPU."""
    if total.device.type != "cpu":
        total += half
        return
    piece = total.new_empty(_ROWS_TO_ADD, total.shape[1])
    for rows, halves in zip(torch.split(total, _ROWS_TO_ADD), torch.split(half, _ROWS_TO_ADD), strict=True):
        rows += piece[: len(rows)].copy_(halves)


def chunk_size(tokens: int, vocab_size: int, dtype: torch.dtype, device: torch.device) -> int:
    """Tokens of a chunk: many enough for an efficient product, few enough to be small beside the rest of a step.

    On a CPU a multiple of 64, where its products are fastest.
    """
    if device.type != "cpu":
        return min(tokens, max(64, 2**27 // vocab_size))
    values = 13 * 2**20 if dtype.itemsize >= 4 else 26 * 2**20  # 55 MB either way
    return max(1, min(tokens, max(64, values // vocab_size // 64 * 64)))


def chunks_for(weight: Tensor, size: int, terms: Terms) -> Chunks:
    """The faster layout for where ``weight`` is and what it is of."""
    first = weight.device.type == "cpu" and weight.dtype in (torch.float32, torch.float64)
    return (VocabularyFirst if first else TokensFirst)(weight, size, terms)
