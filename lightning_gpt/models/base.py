"""What every language model of this package offers besides its own formula."""

from abc import abstractmethod
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from lightning_gpt.errors import CallError
from lightning_gpt.models.context import Context, Shared
from lightning_gpt.models.decoding.generating import Generating
from lightning_gpt.models.head import OutputHead
from lightning_gpt.models.kv_cache import Cache
from lightning_gpt.models.layer import Embedding, Layer
from lightning_gpt.models.part_losses import PartLosses
from lightning_gpt.models.positions.scheme import Positions, positions_within
from lightning_gpt.models.record import Edit, Trace, record
from lightning_gpt.models.registry import Models, plain
from lightning_gpt.models.view import BlockView

models: Models["LanguageModel"] = Models()
"""Every model, with the class of its config, by the name that checkpoints call it."""


class LanguageModel(Layer, Generating):
    """A causal model of token sequences: tokens and positions in, an output head at the end.

    A subclass makes its parts, then says how ids become last hidden states (:meth:`hidden`); logits, loss, recording
    and generation follow.
    """

    name: str
    """What checkpoints and messages call it; set when the class is registered."""
    token_embedding: Embedding
    positions: Positions
    head: OutputHead
    config: Any
    """The frozen dataclass that the model was built from; it has at least ``block_size`` and ``vocab_size``."""

    @abstractmethod
    def hidden(
        self,
        ids: Tensor,
        documents: Tensor | None = None,
        cache: Cache | None = None,
        lengths: Tensor | None = None,
        losses: PartLosses | None = None,
    ) -> Tensor:
        """Token ids ``(batch, time)`` to the last hidden states ``(batch, time, dim)``.

        With ``documents`` ``(batch, time)``, the number of the document that each token is of (not falling along
        time), tokens attend within their document only and positions restart at each. With a ``cache`` the ids go on
        from what it has read, and are read into it; ``lengths`` ``(batch,)`` says how many ids of each row are real
        where rows are padded at their end.
        """

    @abstractmethod
    def block_views(self) -> list[BlockView]:
        """The blocks, from the first to the last that is run. The stream before them is named ``embedding``."""

    def init_all(self) -> None:
        """Fill the weights of every layer, in the order of the model's parts, as training starts with them."""
        for part in self.modules():
            if isinstance(part, Layer):
                part.init_weights()

    def read_out(self, stream: Tensor) -> Tensor:
        """A residual stream ``(..., dim)`` as the head reads it: behind a final norm, where the model has one."""
        return stream

    @property
    def unembedding(self) -> Tensor:
        """The matrix ``(vocab_size, dim)`` that scores each token against a hidden state."""
        return self.head.weight

    def forward(self, ids: Tensor, documents: Tensor | None = None) -> Tensor:
        """Token ids ``(batch, time)`` to logits ``(batch, time, vocab_size)``.

        Raises:
            CallError: Where ``time`` is more than ``block_size``, or (on CPU) an id is outside the vocabulary.
        """
        return self.see("logits", self.head(self.hidden(ids, documents)))

    def loss(
        self,
        ids: Tensor,
        targets: Tensor,
        documents: Tensor | None = None,
        *,
        label_smoothing: float = 0.0,
        z_loss: float = 0.0,
    ) -> Tensor:
        """Mean cross-entropy in nats of ``targets`` ``(batch, time)`` after ``ids``, never holding the logits.

        ``label_smoothing`` and ``z_loss`` are those of :func:`~lightning_gpt.models.head.linear_cross_entropy`. While
        training, the losses of the model's own parts are added to its gradient, not to its value
        (:class:`~lightning_gpt.models.part_losses.PartLosses`).
        """
        losses = PartLosses() if self.training and torch.is_grad_enabled() else None
        hidden = self.hidden(ids, documents, losses=losses)
        loss = self.head.loss(hidden, targets, label_smoothing, z_loss)
        return loss if losses is None or not losses.of_pass.is_ridden else losses.close(loss)

    def token_nll(self, ids: Tensor, targets: Tensor, documents: Tensor | None = None) -> Tensor:
        """Negative log-likelihood in nats of each target, ``(batch, time)``, without gradient."""
        return self.head.token_nll(self.hidden(ids, documents), targets)

    @property
    def context_limit(self) -> int | None:
        """The longest sequence that the model can read, in tokens: the end of learned positions; None where any."""
        return self.positions.limit

    @property
    def trace_limit(self) -> int | None:
        """The longest text whose intermediates one pass can record, in tokens; None where any."""
        return None

    def record(
        self, names: Iterable[str] | str | None = None, edits: Mapping[str, Edit] | None = None
    ) -> AbstractContextManager[Trace]:
        """Record (and edit) named intermediates; see :func:`lightning_gpt.models.record.record`."""
        return record(self, names, edits)

    def context(
        self,
        ids: Tensor,
        documents: Tensor | None = None,
        cache: Cache | None = None,
        lengths: Tensor | None = None,
        losses: PartLosses | None = None,
    ) -> Context:
        """Where the tokens of ``ids`` stand; refuses what the model cannot read."""
        self.require_ids(ids, cache)
        positions = cache.positions(ids.shape[1], ids.device) if cache else None
        if documents is not None:
            positions = positions_within(documents)
        return Context(positions, documents, self.positions, cache, None, lengths, ids, losses, Shared())

    def embed(self, ids: Tensor, context: Context) -> Tensor:
        """Token embeddings and what the position scheme adds, ``(batch, time, dim)``, both parts and the sum seen."""
        tokens = self.see("token_embedding", self.token_embedding(ids))  # (B, T, d)
        if self.positions.is_absolute:
            added = self.positions.embedding(ids.shape[1], context.positions)  # (T, d) or (B, T, d)
            tokens = tokens + self.see("position_embedding", added)
        return self.see("embedding", tokens)

    def require_ids(self, ids: Tensor, cache: Cache | None = None) -> None:
        """Refuse ids that do not fit the context or, on a CPU, where a look costs no waiting, the vocabulary."""
        if ids.ndim != 2:
            raise CallError(f"the token ids have shape {tuple(ids.shape)}; it must be (batch, time)")
        time, limit = ids.shape[1] + (cache.length if cache else 0), self.context_limit
        if limit is not None and time > limit:
            raise CallError(
                f"the input has {time} tokens and the model's learned positions end at block_size {limit}: "
                f"shorten the input, or train a model with a larger block_size"
            )
        if ids.device.type == "cpu" and ids.numel():
            low, high = (int(value) for value in ids.aminmax())
            if low < 0 or high >= self.config.vocab_size:
                outside = low if low < 0 else high
                raise CallError(
                    f"token id {outside} is outside the vocabulary of {self.config.vocab_size} "
                    f"(allowed: 0 to {self.config.vocab_size - 1})"
                )

    def describe(self) -> dict[str, Any]:
        """The model's name and config as plain values: what :func:`lightning_gpt.checkpoint.load` rebuilds from."""
        return {"name": self.name, "config": plain(vars(self.config))}
