"""The output head: hidden states to logits, and to the loss without holding all logits in memory.

With a vocabulary of 50,257 the logits of 8 × 256 tokens take 412 MB, and so does their gradient: more than everything
else in a small model. The loss therefore processes a chunk of tokens at a time: it projects them, takes the softmax and
computes the gradient at once (:mod:`.chunked_softmax`).
"""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_gpt.models.chunked_softmax import Chunks, Terms, VocabularyFirst, chunk_size
from lightning_gpt.models.layer import Embedding, Layer, Linear, compute_dtype, without_autocast
from lightning_gpt.models.one_pass import KERNEL_DEVICES, OnePass, has_triton
from lightning_gpt.models.one_vector import is_one_vector, times_vector
from lightning_gpt.models.tokens_first import TokensFirst

MakeChunks = Callable[[Tensor, int, Terms], Chunks]
"""Makes what computes the chunks: from the unembedding, the size of the largest chunk and the terms of the loss."""

IGNORED = -100
"""Targets with this value are ignored, as in :func:`torch.nn.functional.cross_entropy`."""


class OutputHead(Layer):
    """``logits = H Wᵀ`` without bias; W ``(vocab_size, dim)`` is the head's own, or ``tied_to``'s if that is given."""

    def __init__(self, dim: int, vocab_size: int, tied_to: Embedding | None = None) -> None:
        super().__init__()
        self._tied_to = (tied_to,)  # in a tuple, so that it is not registered as a submodule here too
        self.linear = Linear(dim, vocab_size, bias=False, maps=("stream", "vocabulary")) if tied_to is None else None
        self.rounded: nn.Module | None = None  # replaces W in a model quantised for generation

    @property
    def is_tied(self) -> bool:
        """Whether W is the embedding's."""
        return self._tied_to[0] is not None

    @property
    def weight(self) -> Tensor:
        """W, ``(vocab_size, dim)``."""
        (embedding,) = self._tied_to
        owner = self.linear if embedding is None else embedding
        assert owner is not None
        return owner.weight

    def forward(self, hidden: Tensor) -> Tensor:
        """Map hidden states ``(..., dim)`` to logits ``(..., vocab_size)``."""
        if self.rounded is not None:
            return self.rounded(hidden)  # type: ignore[no-any-return]
        return F.linear(hidden, self.weight)

    def few(self, hidden: Tensor) -> Tensor:
        """Logits of a few hidden states ``(rows, dim)``, as in generation, in the layout that is fast for them."""
        if self.rounded is not None:
            return self.rounded(hidden)  # type: ignore[no-any-return]
        if is_one_vector(hidden, self.weight):
            return times_vector(self.weight, hidden)
        # twice as fast on CPU for few rows: the matrix is read in memory order
        return (self.weight @ hidden.T).T

    def loss(self, hidden: Tensor, targets: Tensor, label_smoothing: float = 0.0, z_loss: float = 0.0) -> Tensor:
        """Mean cross-entropy in nats of ``targets`` ``(...)``: :func:`linear_cross_entropy`."""
        return linear_cross_entropy(hidden, self.weight, targets, label_smoothing=label_smoothing, z_loss=z_loss)

    def token_nll(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """Negative log-likelihood of each target in nats: :func:`token_nll`."""
        return token_nll(hidden, self.weight, targets)

    def direction(self, hidden: Tensor, targets: Tensor, against: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The vectors ``(..., dim)`` whose product with ``hidden`` is the logit of ``targets`` ``(...)`` less that of
        ``against``, or the mean of all, and what is then added, ``(...)``."""
        other = self.weight.mean(dim=0) if against is None else self.weight[against]
        return self.weight[targets] - other, hidden.new_zeros(targets.shape)

    def logit_share(self, part: Tensor, hidden: Tensor) -> Tensor:
        """What ``part`` of ``hidden``, both ``(..., dim)``, contributes to all logits; linear in ``part``."""
        return F.linear(part, self.weight)

    def flops(self, positions: Tensor) -> float:
        return 2.0 * self.weight.numel()


def loss_bytes(
    tokens: int, dim: int, vocab_size: int, hidden: torch.dtype, weight: torch.dtype, product: torch.dtype, device: str
) -> int:
    """The most that :func:`linear_cross_entropy` allocates in training, in bytes; ``weight`` needs a gradient.

    Args:
        tokens: Number of hidden states.
        dim: Their width.
        vocab_size: Rows of the unembedding.
        hidden: The dtype of the hidden states.
        weight: The dtype of the unembedding.
        product: The dtype of the products, autocast's if it is enabled.
        device: ``cpu`` or ``cuda``.
    """
    size = chunk_size(tokens, vocab_size, product, torch.device(device))
    sums = torch.promote_types(weight, torch.float32).itemsize * vocab_size * dim
    copies = (product != weight) * vocab_size * dim + (product != hidden) * tokens * dim
    layout = layout_for(device, product)
    chunk = layout.working_bytes(size, vocab_size, dim, product, device)
    return sums + tokens * dim * hidden.itemsize + copies * product.itemsize + chunk


def _require_one_target_each(hidden: Tensor, targets: Tensor) -> None:
    if hidden.shape[:-1] != targets.shape:
        raise ValueError(
            f"hidden states {tuple(hidden.shape)} need targets {tuple(hidden.shape[:-1])}, not {tuple(targets.shape)}"
        )


class _LinearCrossEntropy(torch.autograd.Function):
    """Mean cross-entropy of ``hidden @ weightᵀ``; the forward pass also computes the gradients."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, terms: Terms, make: MakeChunks, rows: int
    ) -> Tensor:
        dtype, counts = compute_dtype(hidden), targets != IGNORED
        labels = torch.where(counts, targets, 0)
        grad_hidden = torch.empty_like(hidden) if ctx.needs_input_grad[0] else None
        # summed over the chunks in fp32 or better, even if the weights are in half precision
        sum_dtype = torch.promote_types(weight.dtype, torch.float32)
        total = hidden.new_zeros((), dtype=torch.promote_types(hidden.dtype, torch.float32))
        size = chunk_size(len(targets), rows, dtype, hidden.device)
        with without_autocast(hidden):
            inputs, chunks = hidden.to(dtype), make(weight.to(dtype), size, terms)
            grad_weight = chunks.weight_sum(sum_dtype) if ctx.needs_input_grad[1] else None
            for start in range(0, len(targets), size):
                place = slice(start, start + size)
                losses = chunks.losses(inputs[place], labels[place])
                total += torch.where(counts[place], losses, 0).sum()
                # divided by the count in the backward pass: dividing here could underflow in half precision
                part = None if grad_hidden is None else grad_hidden[place]
                chunks.gradients(inputs[place], labels[place], counts[place], part, grad_weight)
        count = counts.sum().clamp(min=1)
        ctx.save_for_backward(grad_hidden, grad_weight, count)
        ctx.weight_dtype = weight.dtype
        return total / count

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, Tensor | None, None, None, None, None]:
        if torch.is_grad_enabled():
            raise RuntimeError("linear_cross_entropy is differentiable once; for more, use cross_entropy on the logits")
        grad_hidden, grad_weight, count = ctx.saved_tensors
        scale = grad_outputs[0] / count
        return (
            None if grad_hidden is None else grad_hidden * scale.to(grad_hidden.dtype),
            None if grad_weight is None else (grad_weight * scale).to(ctx.weight_dtype),
            None,
            None,
            None,
            None,
        )


def linear_cross_entropy(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    make: MakeChunks | None = None,
    rows: int | None = None,
) -> Tensor:
    """Mean over the tokens of ``−log softmax(hidden @ weightᵀ)[target]``, in nats.

    Args:
        hidden: The last hidden states, ``(..., dim)``.
        weight: The unembedding, ``(vocab_size, dim)``.
        targets: Token ids ``(...)``; entries equal to :data:`IGNORED` are excluded.
        label_smoothing: Share of the target spread over the vocabulary (Szegedy et al. 2016, 1512.00567, section 7).
        z_loss: Weight of ``log²Z`` added to each token's loss, Z the softmax normaliser (Chowdhery et al. 2022,
            2204.02311, section 5).
        make: Makes what computes each chunk; by default :func:`chunks_for`.
        rows: Rows of the largest part of the vocabulary that a process holds, from which the size of the chunks
            follows; by default those of ``weight``.

    Returns:
        A scalar, differentiable once in ``hidden`` and ``weight``; 0 if every target is ignored. Under autocast the
        products use its precision; softmax and sums stay in fp32.
    """
    _require_one_target_each(hidden, targets)
    terms = Terms(label_smoothing, z_loss)
    hidden, targets = hidden.reshape(-1, hidden.shape[-1]), targets.reshape(-1)
    make, rows = make or chunks_for, rows or len(weight)
    if torch.is_grad_enabled() and (hidden.requires_grad or weight.requires_grad):
        fused: Callable[..., Tensor] = _LinearCrossEntropy.apply
        return fused(hidden, weight, targets, terms, make, rows)
    return _losses(hidden, weight, targets, terms, make, rows).sum() / (targets != IGNORED).sum().clamp(min=1)


def token_nll(
    hidden: Tensor, weight: Tensor, targets: Tensor, make: MakeChunks | None = None, rows: int | None = None
) -> Tensor:
    """Negative log-likelihood of each target in nats, without gradient; 0 for ignored targets.

    Takes ``hidden`` ``(..., dim)``, ``weight`` ``(vocab_size, dim)`` and ``targets`` ``(...)`` (token ids or
    :data:`IGNORED`); ``make`` and ``rows`` are those of :func:`linear_cross_entropy`. Returns the shape of ``targets``
    in fp32 (fp64 for fp64 input).
    """
    _require_one_target_each(hidden, targets)
    hidden, make, rows = hidden.reshape(-1, hidden.shape[-1]), make or chunks_for, rows or len(weight)
    flat = _losses(hidden, weight, targets.reshape(-1), Terms(), make, rows)
    return flat.view(targets.shape)


@torch.no_grad()
def _losses(hidden: Tensor, weight: Tensor, targets: Tensor, terms: Terms, make: MakeChunks, rows: int) -> Tensor:
    """The loss of each token, ``(tokens,)``; 0 for ignored targets."""
    dtype, counts = compute_dtype(hidden), targets != IGNORED
    labels = torch.where(counts, targets, 0)
    losses = torch.zeros(len(targets), dtype=torch.promote_types(dtype, torch.float32), device=hidden.device)
    size = chunk_size(len(targets), rows, dtype, hidden.device)
    with without_autocast(hidden):
        inputs, chunks = hidden.to(dtype), make(weight.to(dtype), size, terms)
        for start in range(0, len(targets), size):
            place = slice(start, start + size)
            losses[place] = torch.where(counts[place], chunks.losses(inputs[place], labels[place]), 0)
    return losses


def chunks_for(weight: Tensor, size: int, terms: Terms) -> Chunks:
    """The fastest layout for this weight's device and precision that can run here."""
    layout = layout_for(weight.device.type, weight.dtype)
    return (TokensFirst if layout is OnePass and not has_triton() else layout)(weight, size, terms)


def layout_for(device: str, dtype: torch.dtype) -> type[VocabularyFirst | TokensFirst | OnePass]:
    """The fastest layout for products of ``dtype`` on a device."""
    if device in KERNEL_DEVICES and dtype != torch.float64:
        return OnePass
    return VocabularyFirst if device == "cpu" and dtype in (torch.float32, torch.float64) else TokensFirst
