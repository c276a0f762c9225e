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
from lightning_gpt.models.generation import Sampling, sample
from lightning_gpt.models.loss import linear_cross_entropy, token_nll
from lightning_gpt.models.watch import Edit, Trace, Watched, record


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


def positions_within(documents: Tensor) -> Tensor:
    """The position of each token in its document, from document numbers ``(batch, time)``."""
    place = torch.arange(documents.shape[1], device=documents.device).expand_as(documents)
    begins = torch.ones_like(documents, dtype=torch.bool)
    begins[:, 1:] = documents[:, 1:] != documents[:, :-1]
    return place - torch.where(begins, place, 0).cummax(dim=1).values


class LanguageModel(Watched, ABC):
    """A causal model of token sequences with learned positions and one unembedding matrix.

    A subclass makes its parts, then says how ids become last hidden states (:meth:`hidden`) and which matrix
    turns those into logits (:attr:`unembedding`); logits, loss, recording and generation follow from the two.
    """

    config: Any
    """The frozen dataclass that the model was built from; it has at least ``block_size`` and ``vocab_size``."""

    @abstractmethod
    def hidden(self, ids: Tensor, documents: Tensor | None = None) -> Tensor:
        """Token ids ``(batch, time)`` to the last hidden states ``(batch, time, dim)``.

        With ``documents`` ``(batch, time)``, the number of the document that each token is of (not falling along
        time), tokens attend within their document only and positions restart at each.
        """

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

    def loss(self, ids: Tensor, targets: Tensor, documents: Tensor | None = None) -> Tensor:
        """Mean cross-entropy in nats of ``targets`` ``(batch, time)`` after ``ids``, never holding the logits."""
        return linear_cross_entropy(self.hidden(ids, documents), self.unembedding, targets)

    def token_nll(self, ids: Tensor, targets: Tensor, documents: Tensor | None = None) -> Tensor:
        """Negative log-likelihood in nats of each target, ``(batch, time)``, without gradient."""
        return token_nll(self.hidden(ids, documents), self.unembedding, targets)

    def next_logits(self, ids: Tensor) -> Tensor:
        """Logits ``(batch, vocab_size)`` of the token after ``ids``; only the last ``block_size`` ids count."""
        return F.linear(self.hidden(ids[:, -self.config.block_size :])[:, -1], self.unembedding)

    def record(
        self, names: Iterable[str] | str | None = None, edits: Mapping[str, Edit] | None = None
    ) -> AbstractContextManager[Trace]:
        """Record (and edit) named intermediates; see :func:`lightning_gpt.models.watch.record`."""
        return record(self, names, edits)

    def generate(
        self,
        ids: Tensor,
        max_new_tokens: int,
        *,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Continue each row of ``ids`` ``(batch, time)``; returns ``(batch, time + max_new_tokens)``.

        ``temperature=0`` is greedy. Past ``block_size`` the context slides: each token sees the last
        ``block_size`` ids. Dropout is off meanwhile.
        """
        sampling = Sampling(temperature=temperature, top_k=top_k, top_p=top_p)
        with evaluating(self):
            new = list(sample(self.next_logits, ids, max_new_tokens, sampling, generator))
        return torch.cat([ids, *(token[:, None] for token in new)], dim=1)

    def embed(
        self,
        ids: Tensor,
        token_embedding: nn.Embedding,
        position_embedding: nn.Embedding,
        documents: Tensor | None = None,
    ) -> Tensor:
        """``E_tok[ids] + E_pos[0..time−1]``, ``(batch, time, dim)``, with both parts and the sum recorded."""
        if ids.ndim != 2:
            raise CallError(f"the token ids have shape {tuple(ids.shape)}; it must be (batch, time)")
        time, limit = ids.shape[1], self.config.block_size
        if time > limit:
            raise CallError(
                f"the input has {time} tokens and the model's learned positions end at block_size {limit}: "
                f"shorten the input, or train a model with a larger block_size"
            )
        self.check_ids(ids)
        tokens = self.see("token_embedding", token_embedding(ids))  # (B, T, d)
        if documents is None:
            positions = position_embedding.weight[:time]  # (T, d)
        else:
            positions = position_embedding(positions_within(documents))  # (B, T, d)
        return self.see("embedding", tokens + self.see("position_embedding", positions))

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
