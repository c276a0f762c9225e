"""The output head and the cross-entropy as one function that never holds all the logits.

With a vocabulary of 50,257 the logits of 8 × 256 tokens are 412 MB, and so is their gradient: more than
everything else in a small model. Here a chunk of tokens at a time is projected, its softmax taken, and the
gradient of the head made from it at once, so that the largest array is ``chunk × vocab_size``.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

IGNORED = -100
"""A target that counts for nothing, as in :func:`torch.nn.functional.cross_entropy`."""


def _chunk_size(tokens: int, vocab_size: int, device: torch.device) -> int:
    """Tokens per chunk: many enough for an efficient product, few enough to be small beside the rest; of equal size."""
    values = 2**24 if device.type == "cpu" else 2**27
    chunks = math.ceil(tokens / max(64, values // vocab_size))
    return math.ceil(tokens / max(1, chunks))


def _compute_dtype(hidden: Tensor) -> torch.dtype:
    device = hidden.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype


def _require_one_target_each(hidden: Tensor, targets: Tensor) -> None:
    if hidden.shape[:-1] != targets.shape:
        raise ValueError(
            f"hidden states {tuple(hidden.shape)} need targets {tuple(hidden.shape[:-1])}, not {tuple(targets.shape)}"
        )


class _Chunk:
    """One chunk's logits, then its softmax, in arrays that every chunk uses again.

    Allocating them anew costs more than the softmax: the system hands out so large a piece page by page.

    Args:
        size: Tokens of the largest chunk.
        vocab_size: Number of logits a token.
        dtype: Of the products.
        device: Where.
    """

    def __init__(self, size: int, vocab_size: int, dtype: torch.dtype, device: torch.device) -> None:
        exact = torch.promote_types(dtype, torch.float32)
        self._logits = torch.empty(size, vocab_size, dtype=dtype, device=device)
        self._softmax = self._logits if exact == dtype else self._logits.new_empty(size, vocab_size, dtype=exact)

    def project(self, hidden: Tensor, weight: Tensor) -> Tensor:
        """Logits ``(tokens, vocab_size)`` at fp32 or better, made from a product in ``hidden``'s precision."""
        logits = torch.mm(hidden, weight.T, out=self._logits[: len(hidden)])
        return logits if self._softmax is self._logits else self._softmax[: len(hidden)].copy_(logits)

    def softmax(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Softmax in the place of ``logits``, and the log of the sum of their exponentials ``(tokens,)``.

        The latter is read off the softmax (``log Σ exp z = max z − log max p``): several times faster on CPU than
        :func:`torch.logsumexp`, and as exact, because ``max p >= 1 / vocab_size`` never underflows.
        """
        largest = logits.amax(dim=-1)
        softmax = torch.softmax(logits, dim=-1, out=logits)
        return softmax, largest - softmax.amax(dim=-1).log()

    def rounded(self, gradient: Tensor) -> Tensor:
        """The gradient of the logits in the precision of the products."""
        return gradient if self._softmax is self._logits else self._logits[: len(gradient)].copy_(gradient)


@dataclass(frozen=True)
class _Terms:
    """What is added up for each token besides its negative log-likelihood."""

    label_smoothing: float = 0.0
    z_loss: float = 0.0

    def value(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Of the loss of each token what is linear in the logits, ``(tokens,)``."""
        target = logits.gather(1, labels[:, None]).squeeze(1)
        if self.label_smoothing == 0:
            return -target
        return -(1 - self.label_smoothing) * target - self.label_smoothing * logits.mean(dim=-1)

    def gradient_(self, softmax: Tensor, log_sum_exp: Tensor, labels: Tensor) -> Tensor:
        """The gradient of each token's loss in its logits, in the place of ``softmax``."""
        if self.z_loss:
            softmax *= (1 + 2 * self.z_loss * log_sum_exp)[:, None]
        if self.label_smoothing:
            softmax -= self.label_smoothing / softmax.shape[1]
        softmax[torch.arange(len(labels), device=labels.device), labels] -= 1 - self.label_smoothing
        return softmax


class _LinearCrossEntropy(torch.autograd.Function):
    """Mean cross-entropy of ``hidden @ weightᵀ``; the gradients are made in the forward pass."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, terms: _Terms) -> Tensor:
        dtype = _compute_dtype(hidden)
        valid = targets != IGNORED
        # Asking whether all are valid would make a GPU wait; there, masking costs next to nothing.
        mask_needed = targets.device.type != "cpu" or not bool(valid.all())
        grad_hidden = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        # summed over the chunks at fp32 or better, also where the weights are in half precision
        sum_dtype = torch.promote_types(weight.dtype, torch.float32)
        grad_weight = torch.zeros_like(weight, dtype=sum_dtype) if ctx.needs_input_grad[1] else None
        total = hidden.new_zeros((), dtype=torch.promote_types(hidden.dtype, torch.float32))
        size = _chunk_size(len(targets), len(weight), hidden.device)
        with torch.autocast(hidden.device.type, enabled=False):
            cast_weight = weight.to(dtype)
            chunk = _Chunk(size, len(weight), dtype, hidden.device)
            part = torch.empty_like(cast_weight) if grad_weight is not None and dtype != sum_dtype else None
            for inputs, labels, counts, place in _chunks(hidden.to(dtype), targets, valid, size):
                logits = chunk.project(inputs, cast_weight)
                linear = terms.value(logits, labels)
                softmax, log_sum_exp = chunk.softmax(logits)
                losses = log_sum_exp + linear + terms.z_loss * log_sum_exp**2
                total += torch.where(counts, losses, 0).sum()
                # The division by the count waits for the backward pass, so that half precision does not lose the
                # small entries.
                gradient = terms.gradient_(softmax, log_sum_exp, labels)
                if mask_needed:
                    gradient *= counts[:, None]
                gradient = chunk.rounded(gradient)
                if grad_hidden is not None:
                    grad_hidden[place] = gradient @ cast_weight
                if part is not None and grad_weight is not None:
                    grad_weight += torch.mm(gradient.T, inputs, out=part)
                elif grad_weight is not None:
                    grad_weight.addmm_(gradient.T, inputs)
        count = valid.sum().clamp(min=1)
        ctx.save_for_backward(grad_hidden, grad_weight, count)
        ctx.weight_dtype = weight.dtype
        return total / count

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        if torch.is_grad_enabled():
            raise RuntimeError("linear_cross_entropy is differentiable once; for more, use cross_entropy on the logits")
        grad_hidden, grad_weight, count = ctx.saved_tensors
        scale = grad_outputs[0] / count
        return (
            None if grad_hidden is None else grad_hidden * scale.to(grad_hidden.dtype),
            None if grad_weight is None else (grad_weight * scale).to(ctx.weight_dtype),
            None,
            None,
        )


def _chunks(
    hidden: Tensor, targets: Tensor, valid: Tensor, size: int
) -> Iterator[tuple[Tensor, Tensor, Tensor, slice]]:
    """Hidden states, targets (0 where ignored), which of them count and where they stand, a chunk at a time."""
    for start in range(0, len(targets), size):
        place = slice(start, start + size)
        yield hidden[place], torch.where(valid[place], targets[place], 0), valid[place], place


def linear_cross_entropy(
    hidden: Tensor, weight: Tensor, targets: Tensor, *, label_smoothing: float = 0.0, z_loss: float = 0.0
) -> Tensor:
    """Mean over the tokens of ``−log softmax(hidden @ weightᵀ)[target]``, in nats.

    Args:
        hidden: ``(..., dim)``, the last hidden states.
        weight: ``(vocab_size, dim)``, the unembedding.
        targets: ``(...)`` token ids; entries of :data:`IGNORED` do not count.
        label_smoothing: Share of the target spread evenly over the vocabulary (Szegedy et al. 2016, 1512.00567,
            section 7).
        z_loss: Weight of ``log²Z`` added to each token's loss, Z the sum of the exponentials of its logits
            (Chowdhery et al. 2022, 2204.02311, section 5).

    Returns:
        A scalar, differentiable once in ``hidden`` and ``weight``; 0 where every target is ignored.
        Under autocast the products are in its precision; softmax and sums stay in fp32.
    """
    _require_one_target_each(hidden, targets)
    terms = _Terms(label_smoothing, z_loss)
    hidden, targets = hidden.reshape(-1, hidden.shape[-1]), targets.reshape(-1)
    if torch.is_grad_enabled() and (hidden.requires_grad or weight.requires_grad):
        return _LinearCrossEntropy.apply(hidden, weight, targets, terms)  # type: ignore[no-any-return, no-untyped-call]
    valid = targets != IGNORED
    return _losses(hidden, weight, targets, terms).sum() / valid.sum().clamp(min=1)


def token_nll(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """The negative log-likelihood of each target in nats, without gradient; 0 where the target is ignored.

    Args:
        hidden: ``(..., dim)``.
        weight: ``(vocab_size, dim)``.
        targets: ``(...)`` token ids, or :data:`IGNORED`.

    Returns:
        The shape of ``targets``, in fp32 (fp64 for fp64 input).
    """
    _require_one_target_each(hidden, targets)
    flat = _losses(hidden.reshape(-1, hidden.shape[-1]), weight, targets.reshape(-1), _Terms())
    return flat.view(targets.shape)


@torch.no_grad()
def _losses(hidden: Tensor, weight: Tensor, targets: Tensor, terms: _Terms) -> Tensor:
    """The loss of each token, ``(tokens,)``, 0 where it is ignored."""
    dtype, valid = _compute_dtype(hidden), targets != IGNORED
    size = _chunk_size(len(targets), len(weight), hidden.device)
    losses = torch.zeros(len(targets), dtype=torch.promote_types(dtype, torch.float32), device=hidden.device)
    with torch.autocast(hidden.device.type, enabled=False):
        cast_weight = weight.to(dtype)
        chunk = _Chunk(size, len(weight), dtype, hidden.device)
        for inputs, labels, counts, place in _chunks(hidden.to(dtype), targets, valid, size):
            logits = chunk.project(inputs, cast_weight)
            linear = terms.value(logits, labels)
            _, log_sum_exp = chunk.softmax(logits)
            losses[place] = torch.where(counts, log_sum_exp + linear + terms.z_loss * log_sum_exp**2, 0)
    return losses
