"""The common interface of all language models in this package."""

from abc import abstractmethod
from collections.abc import Hashable, Iterable, Mapping
from contextlib import AbstractContextManager
from typing import Any, Protocol

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
"""Every model and the class of its config, by the name used in checkpoints."""


class DividedPasses(Protocol):
    """Computes a model's loss where several processes divide the rows, or the layers, of one pass between them.

    Every process is given the same whole rows, ``(batch, time)``.
    """

    def loss(
        self, ids: Tensor, targets: Tensor, documents: Tensor | None, label_smoothing: float, z_loss: float
    ) -> Tensor:
        """This process's share of :meth:`LanguageModel.loss`; the mean of all shares is the loss."""

    def token_nll(self, ids: Tensor, targets: Tensor, documents: Tensor | None) -> Tensor:
        """The result of :meth:`LanguageModel.token_nll`, of the whole rows in every process."""


class LanguageModel(Layer, Generating):
    """A causal model of token sequences: token and position embeddings in, an output head at the end.

    A subclass creates its parts and implements :meth:`hidden`, which maps ids to the last hidden states; logits, loss,
    recording and generation build on that.
    """

    name: str
    """The name used in checkpoints and messages; set when the class is registered."""
    class_name: str
    """The name of the class as registered, even where a layout has replaced the class by one of its own."""
    token_embedding: Embedding
    embedding_scale: float = 1.0
    """What the token embeddings are multiplied by."""
    positions: Positions
    head: OutputHead
    config: Any
    """The frozen dataclass that the model was built from; it has at least ``block_size`` and ``vocab_size``."""
    divided: DividedPasses | None = None
    """Computes loss and token_nll if processes divide their rows or layers; None where one process runs all of it."""

    @abstractmethod
    def hidden(
        self,
        ids: Tensor,
        documents: Tensor | None = None,
        cache: Cache | None = None,
        lengths: Tensor | None = None,
        losses: PartLosses | None = None,
    ) -> Tensor:
        """Map token ids ``(batch, time)`` to the last hidden states ``(batch, time, dim)``.

        ``documents`` ``(batch, time)`` numbers each token's document (non-decreasing along time): tokens attend only
        within their document, and positions restart at each. With a ``cache``, the ids continue its tokens and are
        added to it. For rows padded at the end, ``lengths`` ``(batch,)`` gives the number of real ids in each row.
        """

    @property
    def can_be_graphed(self) -> bool:
        """Whether every part says that its passes run the same kernels whatever the data."""
        return all(part.same_each_step for part in self.modules() if isinstance(part, Layer))

    @abstractmethod
    def block_views(self) -> list[BlockView]:
        """The blocks in the order they run. The stream before the first is named ``embedding``."""

    def passed_on(self, layer: int, context: Context) -> dict[Hashable, Tensor]:
        """What layers after this one read besides the stream, by its key in what is carried."""
        return {}

    def init_all(self) -> None:
        """Initialise the weights of every layer, in the order of the model's parts."""
        for part in self.modules():
            if isinstance(part, Layer):
                part.init_weights()

    def widened(self, stream: Tensor) -> Tensor:
        """The stream as the first block is given it, of the embeddings ``(..., dim)``; the same but for a residual rule
        that keeps several copies."""
        return stream

    def narrowed(self, stream: Tensor) -> Tensor:
        """What the final norm reads of a stream between blocks, ``(..., dim)``: the sum of the copies, if there are
        several."""
        return stream

    def read_out(self, stream: Tensor) -> Tensor:
        """A narrowed stream ``(..., dim)`` as the head reads it: after the final norm, if the model has one."""
        return stream

    def read_out_share(self, part: Tensor, stream: Tensor) -> Tensor:
        """What ``part`` of a narrowed stream ``(..., dim)`` contributes to :meth:`read_out`; linear in ``part``."""
        return part

    @property
    def unembedding(self) -> Tensor:
        """The matrix ``(vocab_size, dim)`` that scores each token against a hidden state."""
        return self.head.weight

    def forward(self, ids: Tensor, documents: Tensor | None = None) -> Tensor:
        """Map token ids ``(batch, time)`` to logits ``(batch, time, vocab_size)``.

        Raises:
            CallError: If ``time`` exceeds ``block_size``, or (checked on CPU) an id is outside the vocabulary.
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
        """Mean cross-entropy in nats of ``targets`` ``(batch, time)`` given ``ids``, without holding all the logits.

        ``label_smoothing`` and ``z_loss`` are as in :func:`~lightning_gpt.models.head.linear_cross_entropy`. In
        training, the auxiliary losses of the model's parts are added to the gradient, not to the returned value
        (:class:`~lightning_gpt.models.part_losses.PartLosses`).
        """
        if self.divided is not None:
            return self.divided.loss(ids, targets, documents, label_smoothing, z_loss)
        losses = PartLosses() if self.training and torch.is_grad_enabled() else None
        hidden = self.hidden(ids, documents, losses=losses)
        loss = self.head.loss(hidden, targets, label_smoothing, z_loss)
        return loss if losses is None or not losses.of_pass.has_losses else losses.close(loss)

    def token_nll(self, ids: Tensor, targets: Tensor, documents: Tensor | None = None) -> Tensor:
        """Negative log-likelihood in nats of each target, ``(batch, time)``, without gradient."""
        if self.divided is not None:
            return self.divided.token_nll(ids, targets, documents)
        return self.head.token_nll(self.hidden(ids, documents), targets)

    @property
    def context_limit(self) -> int | None:
        """The longest sequence the model can read, in tokens (the end of learned positions); None if unlimited."""
        return self.positions.limit

    @property
    def knows_length(self) -> bool:
        """Whether ``block_size`` is part of what it computes, rather than the length of the training rows alone."""
        return self.positions.knows_length

    @property
    def trace_limit(self) -> int | None:
        """The longest text whose intermediates one pass can record, in tokens; None if unlimited."""
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
        """The context of a forward pass over ``ids``; raises a CallError if the model cannot read them."""
        self.require_ids(ids, cache)
        positions = cache.positions(ids.shape[1], ids.device) if cache else None
        if documents is not None and positions is None:
            positions = positions_within(documents)
        return Context(positions, documents, self.positions, cache, None, lengths, ids, losses, Shared())

    def embed(self, ids: Tensor, context: Context) -> Tensor:
        """Token embeddings plus absolute position embeddings, if any, then their norm, ``(batch, time, dim)``."""
        tokens = self.token_embedding(ids)
        if self.embedding_scale != 1:
            tokens = tokens * self.embedding_scale
        tokens = self.see("token_embedding", tokens)  # (B, T, d)
        if self.positions.is_absolute:
            added = self.positions.embedding(ids.shape[1], context.positions)  # (T, d) or (B, T, d)
            tokens = tokens + self.see("position_embedding", added)
        return self.see("embedding", self.normed_embedding(tokens))

    def normed_embedding(self, x: Tensor) -> Tensor:
        """The norm of the embeddings, if the model has one."""
        return x

    def require_ids(self, ids: Tensor, cache: Cache | None = None) -> None:
        """Raise a CallError if ids exceed the context or (checked on CPU only: a GPU would stall) the vocabulary."""
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
        """The model's name and config as plain values, from which :func:`lightning_gpt.load` rebuilds it."""
        return {"name": self.name, "config": plain(vars(self.config))}
