"""The output head and the cross-entropy as one function that never holds all the logits.

With a vocabulary of 50,257 the logits of 8 × 256 tokens are 412 MB, and so is their gradient: more than
everything else in a small model. Here a chunk of tokens at a time is projected, its softmax taken, and the
gradient of the head made from it at once, so that the largest array is ``chunk × vocab_size``.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

IGNORED = -100
"""A target that counts for nothing, as in :func:`torch.nn.functional.cross_entropy`."""


def _chunk_size(vocab_size: int, device: torch.device) -> int:
    """Tokens per chunk: enough for an efficient product, few enough that a chunk stays near the cache."""
    values = 2**23 if device.type == "cpu" else 2**27
    return max(64, values // vocab_size)


def _compute_dtype(hidden: Tensor) -> torch.dtype:
    device = hidden.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else hidden.dtype


def _require_one_target_each(hidden: Tensor, targets: Tensor) -> None:
    if hidden.shape[:-1] != targets.shape:
        raise ValueError(
            f"hidden states {tuple(hidden.shape)} need targets {tuple(hidden.shape[:-1])}, not {tuple(targets.shape)}"
        )


def _softmax_and_nll(hidden: Tensor, weight: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Softmax ``(tokens, vocab_size)`` and negative log-likelihood ``(tokens,)`` of one chunk, at fp32 or better.

    The log-sum-exp is read off the softmax (``log Σ exp z = max z − log max p``): several times faster on
    CPU than :func:`torch.logsumexp`, and as exact, because ``max p >= 1 / vocab_size`` never underflows.
    """
    logits = F.linear(hidden, weight)
    if logits.dtype in (torch.bfloat16, torch.float16):
        logits = logits.float()
    softmax = logits.softmax(dim=-1)
    log_sum_exp = logits.amax(dim=-1) - softmax.amax(dim=-1).log()
    return softmax, log_sum_exp - logits.gather(1, targets[:, None]).squeeze(1)


class _LinearCrossEntropy(torch.autograd.Function):
    """Mean cross-entropy of ``hidden @ weightᵀ``; the gradients are made in the forward pass."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        dtype = _compute_dtype(hidden)
        valid = targets != IGNORED
        # Asking whether all are valid would make a GPU wait; there, masking costs next to nothing.
        mask_needed = targets.device.type != "cpu" or not bool(valid.all())
        grad_hidden = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        # summed over the chunks at fp32 or better, also where the weights are in half precision
        sum_dtype = torch.promote_types(weight.dtype, torch.float32)
        grad_weight = torch.zeros_like(weight, dtype=sum_dtype) if ctx.needs_input_grad[1] else None
        total = hidden.new_zeros((), dtype=torch.promote_types(hidden.dtype, torch.float32))
        with torch.autocast(hidden.device.type, enabled=False):
            cast_weight = weight.to(dtype)
            size = _chunk_size(len(weight), hidden.device)
            for start in range(0, len(targets), size):
                chunk = slice(start, start + size)
                inputs, labels = hidden[chunk].to(dtype), torch.where(valid[chunk], targets[chunk], 0)
                softmax, nll = _softmax_and_nll(inputs, cast_weight, labels)
                total += torch.where(valid[chunk], nll, 0).sum()
                # d(nll)/d(logits) = softmax − one-hot; the division by the count waits for the backward
                # pass, so that half precision does not lose the small entries.
                softmax[torch.arange(len(labels), device=labels.device), labels] -= 1
                if mask_needed:
                    softmax *= valid[chunk, None]
                grad_logits = softmax.to(dtype)
                if grad_hidden is not None:
                    grad_hidden[chunk] = grad_logits @ cast_weight
                if grad_weight is not None and dtype == grad_weight.dtype:
                    grad_weight.addmm_(grad_logits.T, inputs)
                elif grad_weight is not None:
                    grad_weight += grad_logits.T @ inputs
        count = valid.sum().clamp(min=1)
        ctx.save_for_backward(grad_hidden, grad_weight, count)
        ctx.weight_dtype = weight.dtype
        return total / count

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        if torch.is_grad_enabled():
            raise RuntimeError("linear_cross_entropy is differentiable once; for more, use cross_entropy on the logits")
        grad_hidden, grad_weight, count = ctx.saved_tensors
        scale = grad_outputs[0] / count
        return (
            None if grad_hidden is None else grad_hidden * scale.to(grad_hidden.dtype),
            None if grad_weight is None else (grad_weight * scale).to(ctx.weight_dtype),
            None,
        )


def linear_cross_entropy(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """Mean over the tokens of ``−log softmax(hidden @ weightᵀ)[target]``, in nats.

    Args:
        hidden: ``(..., dim)``, the last hidden states.
        weight: ``(vocab_size, dim)``, the unembedding.
        targets: ``(...)`` token ids; entries of :data:`IGNORED` do not count.

    Returns:
        A scalar, differentiable once in ``hidden`` and ``weight``; 0 where every target is ignored.
        Under autocast the products are in its precision; softmax and sums stay in fp32.
    """
    _require_one_target_each(hidden, targets)
    hidden, targets = hidden.reshape(-1, hidden.shape[-1]), targets.reshape(-1)
    if torch.is_grad_enabled() and (hidden.requires_grad or weight.requires_grad):
        return _LinearCrossEntropy.apply(hidden, weight, targets)  # type: ignore[no-any-return, no-untyped-call]
    valid = targets != IGNORED
    return token_nll(hidden, weight, targets).sum() / valid.sum().clamp(min=1)


@torch.no_grad()
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
    dtype = _compute_dtype(hidden)
    flat, labels = hidden.reshape(-1, hidden.shape[-1]), torch.where(targets != IGNORED, targets, 0).reshape(-1)
    size = _chunk_size(len(weight), hidden.device)
    with torch.autocast(hidden.device.type, enabled=False):
        cast_weight = weight.to(dtype)
        chunks = [
            _softmax_and_nll(inputs.to(dtype), cast_weight, chunk)[1]
            for inputs, chunk in zip(torch.split(flat, size), torch.split(labels, size), strict=True)
        ]
    nll = torch.cat(chunks).view(targets.shape)
    return torch.where(targets != IGNORED, nll, 0)
