"""An output head with a bias, divided or bounded logits, as some published models have."""

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lightning_gpt.models.chunked_softmax import Terms, chunk_size
from lightning_gpt.models.head import IGNORED, OutputHead
from lightning_gpt.models.layer import Embedding


class AdjustedHead(OutputHead):
    """``logits = c tanh(z / c)`` of ``z = (H Wᵀ + b) / s``, with any of b, s and c.

    The bound is Gemma Team 2024 (2408.00118), section 2, "Logit soft-capping"; the bias is that of Phi (Gunasekar et
    al. 2023, 2306.11644); the divisor is Granite's, whose models are parametrised as in μP (Shen et al. 2024,
    2408.13359; Yang et al. 2022, 2203.03466, table 8). The fused loss has neither bias nor bound. With one of them,
    the loss is computed chunk by chunk, and each chunk once more in the backward pass, so that the logits of one chunk
    alone are held. With s alone, it is the fused loss of H / s.

    Args:
        dim: Width of the hidden states.
        vocab_size: Number of token ids.
        tied_to: The embedding whose matrix is W; None for a matrix of its own.
        bias: Whether there is a b.
        softcap: c; None for no bound.
        divisor: s.
    """

    def __init__(
        self,
        dim: int,
        vocab_size: int,
        tied_to: Embedding | None = None,
        *,
        bias: bool,
        softcap: float | None,
        divisor: float = 1.0,
    ) -> None:
        super().__init__(dim, vocab_size, tied_to)
        self.bias = nn.Parameter(torch.empty(vocab_size)) if bias else None
        self.softcap, self.divisor = softcap, divisor
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """b = 0."""
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def adjust(self, logits: Tensor) -> Tensor:
        """Map products ``(..., vocab_size)`` to logits."""
        if self.bias is not None:
            logits = logits + self.bias.to(logits.dtype)
        if self.divisor != 1:
            logits = logits / self.divisor
        return logits if self.softcap is None else self.softcap * torch.tanh(logits / self.softcap)

    @property
    def is_fused(self) -> bool:
        """Whether the fused loss computes it."""
        return self.bias is None and self.softcap is None

    def forward(self, hidden: Tensor) -> Tensor:
        """Map hidden states ``(..., dim)`` to logits ``(..., vocab_size)``."""
        return self.adjust(super().forward(hidden))

    def few(self, hidden: Tensor) -> Tensor:
        """The same for a few hidden states ``(rows, dim)``."""
        return self.adjust(super().few(hidden))

    def loss(self, hidden: Tensor, targets: Tensor, label_smoothing: float = 0.0, z_loss: float = 0.0) -> Tensor:
        """Mean cross-entropy in nats of ``targets`` ``(...)``, ignored ones apart."""
        if self.is_fused:
            return super().loss(hidden / self.divisor, targets, label_smoothing, z_loss)
        losses = self._losses(hidden, targets, Terms(label_smoothing, z_loss))
        return losses.sum() / (targets != IGNORED).sum().clamp(min=1)

    @torch.no_grad()
    def token_nll(self, hidden: Tensor, targets: Tensor) -> Tensor:
        """Negative log-likelihood of each target in nats; 0 for ignored ones."""
        if self.is_fused:
            return super().token_nll(hidden / self.divisor, targets)
        return self._losses(hidden, targets, Terms()).view(targets.shape)

    def direction(self, hidden: Tensor, targets: Tensor, against: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """As in any head, each bounded logit held at its ratio to what it bounds."""
        held, added = self._held(hidden)

        def of(ids: Tensor) -> tuple[Tensor, Tensor]:
            ratio = held.gather(-1, ids[..., None])
            return ratio * self.weight[ids], ratio[..., 0] * added[ids]

        own, constant = of(targets)
        other, from_other = (held @ self.weight, held @ added) if against is None else of(against)
        size = len(self.weight) if against is None else 1
        return own - other / size, constant - from_other / size

    def logit_share(self, part: Tensor, hidden: Tensor) -> Tensor:
        """Each bounded logit held at its ratio to what it bounds."""
        return self._held(hidden)[0] * super().logit_share(part, hidden)

    def _held(self, hidden: Tensor) -> tuple[Tensor, Tensor]:
        """The ratio of each logit to what is divided and bounded, ``(..., vocab_size)``, and the bias in the latter."""
        products = super().forward(hidden)
        added = products.new_zeros(products.shape[-1]) if self.bias is None else self.bias
        unbounded = products + added
        return torch.where(unbounded == 0, 1 / self.divisor, self.adjust(products) / unbounded), added

    def _losses(self, hidden: Tensor, targets: Tensor, terms: Terms) -> Tensor:
        """The loss of each token, ``(tokens,)``."""
        rows, labels = hidden.reshape(-1, hidden.shape[-1]), targets.reshape(-1)
        # besides the logits, a chunk's tanh, its softmax and their gradients are alive at once
        size = max(1, chunk_size(len(labels), len(self.weight), hidden.dtype, hidden.device) // 4)
        parts = zip(torch.split(rows, size), torch.split(labels, size), strict=True)
        # nothing is random here, and reading the state of random numbers would break a CUDA graph
        losses = [
            checkpoint(self._chunk, *part, terms, use_reentrant=False, preserve_rng_state=False) for part in parts
        ]
        return torch.cat(losses)

    def _chunk(self, hidden: Tensor, targets: Tensor, terms: Terms) -> Tensor:
        logits = super().forward(hidden)
        logits = self.adjust(logits.to(torch.promote_types(logits.dtype, torch.float32)))
        counts = targets != IGNORED
        target = logits.gather(1, torch.where(counts, targets, 0)[:, None])[:, 0]
        mean = logits.mean(dim=-1) if terms.label_smoothing else None
        return torch.where(counts, terms.loss(logits.logsumexp(dim=-1), target, mean), 0)
