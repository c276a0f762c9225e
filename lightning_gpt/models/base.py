"""What every language model of this package offers besides its own formula."""

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lightning_gpt.errors import CallError
from lightning_gpt.models.context import Context
from lightning_gpt.models.decoding.sampling import Decoder, Sampling, sample
from lightning_gpt.models.fused_loss import linear_cross_entropy, token_nll
from lightning_gpt.models.kv_cache import Cache
from lightning_gpt.models.layer import is_one_vector, times_vector
from lightning_gpt.models.part_losses import penalised, penalties
from lightning_gpt.models.positions.scheme import Positions, positions_within
from lightning_gpt.models.record import Edit, Trace, Watched, record


def require_positive(config: Any, *names: str) -> None:
    """Refuse a config whose named fields are not all positive whole numbers."""
    for name in names:
        value = getattr(config, name)
        if not isinstance(value, int) or value < 1:
            raise CallError(f"{name} is {value}; it must be a whole number of at least 1")


def require_choice(config: Any, name: str, choices: Sequence[str]) -> None:
    """Refuse a config whose field ``name`` is none of ``choices``."""
    value = getattr(config, name)
    if value not in choices:
        raise CallError(f"{name} is {value!r}; it must be one of {', '.join(choices)}")


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Inside, ``model`` is in evaluation mode (no dropout) and makes no gradients; afterwards it is as it was."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, was_training in modes:
            module.training = was_training


class LanguageModel(Watched, ABC):
    """A causal model of token sequences: tokens and positions in, one unembedding matrix out.

    A subclass makes its parts, then says how ids become last hidden states (:meth:`hidden`) and which matrix
    turns those into logits (:attr:`unembedding`); logits, loss, recording and generation follow from the two.
    """

    token_embedding: nn.Embedding
    positions: Positions

    config: Any
    """The frozen dataclass that the model was built from; it has at least ``block_size`` and ``vocab_size``."""

    def __init__(self) -> None:
        super().__init__()
        # stands for the unembedding where the model was rounded for generation (quantization.py)
        self.int8_unembedding: nn.Module | None = None

    @abstractmethod
    def hidden(
        self,
        ids: Tensor,
        documents: Tensor | None = None,
        cache: Cache | None = None,
        lengths: Tensor | None = None,
    ) -> Tensor:
        """Token ids ``(batch, time)`` to the last hidden states ``(batch, time, dim)``.

        With ``documents`` ``(batch, time)``, the number of the document that each token is of (not falling along
        time), tokens attend within their document only and positions restart at each. With a ``cache`` the ids go on
        from what it has read, and are read into it; ``lengths`` ``(batch,)`` says how many ids of each row are real
        where rows are padded at their end.
        """

    @abstractmethod
    def new_cache(self, capacity: int) -> Cache:
        """An empty cache for sequences of up to ``capacity`` tokens, of any number of rows."""

    @property
    @abstractmethod
    def unembedding(self) -> Tensor:
        """The matrix ``(vocab_size, dim)`` that scores each token against a hidden state."""

    def forward(self, ids: Tensor, documents: Tensor | None = None) -> Tensor:
        """Token ids ``(batch, time)`` to logits ``(batch, time, vocab_size)``.

        Raises:
            CallError: Where ``time`` is more than ``block_size``, or (on CPU) an id is outside the vocabulary.
        """
        return self.see("logits", F.linear(self.hidden(ids, documents), self.unembedding))

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

        ``label_smoothing`` and ``z_loss`` are those of :func:`~lightning_gpt.models.fused_loss.linear_cross_entropy`. While
        training, the loss's gradient has that of the parts' own losses added
        (:class:`~lightning_gpt.models.part_losses.Penalised`); its value has not.
        """
        with penalties(self) as terms:
            hidden = self.hidden(ids, documents)
        loss = linear_cross_entropy(hidden, self.unembedding, targets, label_smoothing=label_smoothing, z_loss=z_loss)
        return penalised(loss, terms)

    def token_nll(self, ids: Tensor, targets: Tensor, documents: Tensor | None = None) -> Tensor:
        """Negative log-likelihood in nats of each target, ``(batch, time)``, without gradient."""
        return token_nll(self.hidden(ids, documents), self.unembedding, targets)

    @property
    def context_limit(self) -> int | None:
        """The longest sequence that the model can read, in tokens: the end of learned positions; None where any."""
        return self.positions.limit

    @property
    def trace_limit(self) -> int | None:
        """The longest text whose intermediates one pass can record, in tokens; None where any."""
        return None

    def next_logits(self, ids: Tensor, lengths: Tensor | None = None, cache: Cache | None = None) -> Tensor:
        """Logits ``(batch, vocab_size)`` of the token after ``ids``, or after the first ``lengths`` of each row.

        Of more ids than the model can read only the last count, where neither ``cache`` nor ``lengths`` is given.
        """
        if cache is None and lengths is None and self.context_limit is not None:
            ids = ids[:, -self.context_limit :]
        hidden = self.hidden(ids, cache=cache, lengths=lengths)
        last = hidden[:, -1] if lengths is None else hidden[torch.arange(len(ids), device=ids.device), lengths - 1]
        return self.logits(last)

    def logits(self, hidden: Tensor) -> Tensor:
        """Scores of all tokens for a few hidden states ``(rows, dim)``: ``(rows, vocab_size)``."""
        if self.int8_unembedding is not None:
            return self.int8_unembedding(hidden)  # type: ignore[no-any-return]
        if is_one_vector(hidden, self.unembedding):
            return times_vector(self.unembedding, hidden)
        # for few rows the product is twice as fast on CPU this way round, where the matrix is read in its order
        return (self.unembedding @ hidden.T).T

    def record(
        self, names: Iterable[str] | str | None = None, edits: Mapping[str, Edit] | None = None
    ) -> AbstractContextManager[Trace]:
        """Record (and edit) named intermediates; see :func:`lightning_gpt.models.record.record`."""
        return record(self, names, edits)

    def generate(
        self,
        ids: Tensor,
        max_new_tokens: int,
        *,
        lengths: Tensor | None = None,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Continue each row of ``ids`` ``(batch, time)``; returns ``(batch, time + max_new_tokens)``.

        ``temperature=0`` is greedy. Where prompts are of unequal length, ``lengths`` ``(batch,)`` says how many ids of
        each row are its prompt; its new tokens follow at once, and what was padding stands after them. Past the end of
        learned positions the context slides: each token sees the last ``block_size`` ids. Dropout is off meanwhile.
        """
        sampling = Sampling(temperature=temperature, top_k=top_k, top_p=top_p)
        with evaluating(self):
            new = list(sample(Decoder(self, ids, lengths, max_new_tokens), max_new_tokens, sampling, generator))
        if lengths is None or not new:
            return torch.cat([ids, *(token[:, None] for token in new)], dim=1)
        joined = torch.cat([ids, ids[:, -1:].expand(-1, len(new))], dim=1)
        place = lengths[:, None] + torch.arange(len(new), device=ids.device)
        return joined.scatter_(1, place, torch.stack(new, dim=1))

    def context(
        self, ids: Tensor, documents: Tensor | None = None, cache: Cache | None = None, lengths: Tensor | None = None
    ) -> Context:
        """Where the tokens of ``ids`` stand; refuses what the model cannot read."""
        if ids.ndim != 2:
            raise CallError(f"the token ids have shape {tuple(ids.shape)}; it must be (batch, time)")
        time, limit = ids.shape[1] + (cache.length if cache else 0), self.context_limit
        if limit is not None and time > limit:
            raise CallError(
                f"the input has {time} tokens and the model's learned positions end at block_size {limit}: "
                f"shorten the input, or train a model with a larger block_size"
            )
        self.check_ids(ids)
        at = cache.positions(ids.shape[1], ids.device) if cache else None
        if documents is not None:
            at = positions_within(documents)
        return Context(at, documents, self.positions, cache, lengths, memo={}, ids=ids)

    def embed(self, ids: Tensor, context: Context) -> Tensor:
        """Token embeddings and what the position scheme adds, ``(batch, time, dim)``, both parts and the sum seen."""
        tokens = self.see("token_embedding", self.token_embedding(ids))  # (B, T, d)
        added = self.positions.embedding(ids.shape[1], context.at)  # (T, d) or (B, T, d)
        if added is not None:
            tokens = tokens + self.see("position_embedding", added)
        return self.see("embedding", tokens)

    def check_ids(self, ids: Tensor) -> None:
        """Refuse ids outside the vocabulary; on an accelerator, where looking would stall, its own check serves."""
        if ids.device.type == "cpu" and ids.numel():
            low, high = (int(value) for value in ids.aminmax())
            if low < 0 or high >= self.config.vocab_size:
                outside = low if low < 0 else high
                raise CallError(
                    f"token id {outside} is outside the vocabulary of {self.config.vocab_size} "
                    f"(allowed: 0 to {self.config.vocab_size - 1})"
                )

    def describe(self) -> dict[str, Any]:
        """The class name and config as plain values: what :func:`lightning_gpt.checkpoint.load` rebuilds from."""
        return {"class": type(self).__name__, "config": dataclasses.asdict(self.config)}
