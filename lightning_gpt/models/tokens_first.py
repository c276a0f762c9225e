"""Token-major logits of a chunk: half precision on a CPU, and any precision on a device without Triton."""

import torch
from torch import Tensor

from lightning_gpt.models.chunked_softmax import Chunks, Terms, spare_values

_ROWS_TO_ADD = 4096
_TOKENS_IN_FP32 = 64


class TokensFirst(Chunks):
    """Logits ``(tokens, vocab_size)``; softmax in fp32 or better, converting half-precision logits piece by piece."""

    def __init__(self, weight: Tensor, size: int, terms: Terms) -> None:
        super().__init__(weight, size, terms)
        exact = torch.promote_types(weight.dtype, torch.float32)
        self._rounds = exact != weight.dtype
        spare = _spare(len(weight), weight.dtype)
        self._padded = weight.new_empty(size, len(weight) + spare)
        self._logits = self._padded[:, : len(weight)]
        self._few = _few(size, weight.dtype, weight.device.type)
        self._exact = weight.new_empty(self._few, len(weight), dtype=exact) if self._rounds else self._logits
        self._product: Tensor | None = None

    @staticmethod
    def working_bytes(size: int, vocab_size: int, dim: int, dtype: torch.dtype, device: str) -> int:
        """What a chunk of ``size`` tokens takes.

        Logits, those in fp32, the gradient of the weight in half precision and the piece of it in fp32, and that of
        the hidden states.
        """
        logits = size * (vocab_size + _spare(vocab_size, dtype)) + size * dim
        if dtype.itemsize >= 4:
            return logits * dtype.itemsize
        converted = _few(size, dtype, device) * vocab_size + (
            min(_ROWS_TO_ADD, vocab_size) * dim if device == "cpu" else 0
        )
        return (logits + (vocab_size + _spare(vocab_size, dtype)) * dim) * dtype.itemsize + 4 * converted

    def losses(self, hidden: Tensor, labels: Tensor) -> Tensor:
        torch.mm(hidden, self.weight.T, out=self._logits[: len(hidden)])
        pieces = [self._losses(slice(i, i + self._few), labels) for i in range(0, len(hidden), self._few)]
        return torch.cat(pieces)

    def _losses(self, piece: slice, labels: Tensor) -> Tensor:
        """The losses of a few tokens; overwrites the logits with each loss's gradient."""
        labels, terms = labels[piece], self.terms
        logits = self._logits[piece.start : piece.start + len(labels)]
        z = self._exact[: len(labels)].copy_(logits) if self._rounds else logits
        largest, target = z.amax(dim=-1), z.gather(1, labels[:, None]).squeeze(1)
        mean = z.mean(dim=-1) if terms.label_smoothing else None
        softmax = torch.softmax(z, dim=-1, out=z)
        # log Z is computed from the softmax as largest − log max p: several times faster on CPU than logsumexp,
        # and equally accurate, because max p >= 1 / vocab_size cannot underflow
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
        # checking whether all tokens count would synchronise a GPU, where masking costs almost nothing
        if gradient.device.type != "cpu" or not bool(counts.all()):
            gradient *= counts[:, None]
        if grad_hidden is not None:
            grad_hidden.copy_(gradient @ self.weight)
        if grad_weight is not None and grad_weight.dtype == gradient.dtype:
            grad_weight.addmm_(gradient.T, hidden)
        elif grad_weight is not None:
            # with the values that fill up the rows, whatever they are: their products are left out
            padded = self._padded[: len(hidden)]
            if self._product is None:
                self._product = hidden.new_empty(padded.shape[1], hidden.shape[1])
            _add(grad_weight, torch.mm(padded.T, hidden, out=self._product)[: len(self.weight)])


def _spare(vocab_size: int, dtype: torch.dtype) -> int:
    """Values that fill up a row of half-precision logits: products with aligned rows are faster, also on a CPU."""
    return spare_values(vocab_size) if dtype.itemsize < 4 else 0


def _few(size: int, dtype: torch.dtype, device: str) -> int:
    """Tokens whose logits are in fp32 at a time."""
    return min(size, _TOKENS_IN_FP32) if dtype.itemsize < 4 and device == "cpu" else size


def _add(total: Tensor, half: Tensor) -> None:
    """Add a half-precision matrix to an fp32 one; on CPU in pieces that fit in cache, three times as fast."""
    if total.device.type != "cpu":
        total += half
        return
    piece = total.new_empty(min(_ROWS_TO_ADD, len(total)), total.shape[1])
    for rows, halves in zip(torch.split(total, _ROWS_TO_ADD), torch.split(half, _ROWS_TO_ADD), strict=True):
        rows += piece[: len(rows)].copy_(halves)
