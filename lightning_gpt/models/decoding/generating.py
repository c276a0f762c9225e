"""Text generation for language models."""

from abc import ABC, abstractmethod
from itertools import chain
from typing import Any, overload

import torch
from torch import Tensor, nn

from lightning_gpt.errors import CallError
from lightning_gpt.models.decoding.samplers import sample_text
from lightning_gpt.models.decoding.sampling import NewTokens, Sampling, continued
from lightning_gpt.models.decoding.text import TextCoder, TextStream, pieces, prompt_tokens
from lightning_gpt.models.evaluating import evaluating
from lightning_gpt.models.head import OutputHead
from lightning_gpt.models.kv_cache import Cache


class Generating(nn.Module, ABC):
    """A model that can continue token ids, given its hidden states, its head and its cache."""

    head: OutputHead
    tokenizer: TextCoder | None = None
    """What :meth:`generate` reads and writes text with; a model that was loaded has the one it was trained with."""

    @property
    @abstractmethod
    def can_be_graphed(self) -> bool:
        """Whether every pass runs the same kernels whatever the data, so that a CUDA graph can repeat it."""

    @abstractmethod
    def hidden(
        self,
        ids: Tensor,
        documents: Tensor | None = None,
        cache: Cache | None = None,
        lengths: Tensor | None = None,
    ) -> Tensor:
        """Map token ids ``(batch, time)`` to the last hidden states ``(batch, time, dim)``."""

    @abstractmethod
    def new_cache(self, capacity: int) -> Cache:
        """An empty cache for sequences of up to ``capacity`` tokens and any number of rows."""

    @property
    @abstractmethod
    def context_limit(self) -> int | None:
        """The longest sequence the model can read, in tokens; None if unlimited."""

    def next_logits(self, ids: Tensor, lengths: Tensor | None = None, cache: Cache | None = None) -> Tensor:
        """Logits ``(batch, vocab_size)`` of the token after ``ids``, or after the first ``lengths`` of each row.

        Without ``cache`` and ``lengths``, ids beyond the context limit are dropped from the start.
        """
        if cache is None and lengths is None and self.context_limit is not None:
            ids = ids[:, -self.context_limit :]
        hidden = self.hidden(ids, cache=cache, lengths=lengths)
        last = hidden[:, -1] if lengths is None else hidden[torch.arange(len(ids), device=ids.device), lengths - 1]
        return self.head.few(last)

    @overload
    def generate(
        self,
        prompt: str,
        max_new_tokens: NewTokens = ...,
        *,
        generator: torch.Generator | None = ...,
        **sampling: Any,
    ) -> str: ...

    @overload
    def generate(
        self,
        prompt: Tensor,
        max_new_tokens: NewTokens = ...,
        *,
        lengths: Tensor | None = ...,
        generator: torch.Generator | None = ...,
        **sampling: Any,
    ) -> Tensor: ...

    def generate(
        self,
        prompt: Tensor | str,
        max_new_tokens: NewTokens = 100,
        *,
        lengths: Tensor | None = None,
        generator: torch.Generator | None = None,
        **sampling: Any,
    ) -> Tensor | str:
        """Continue a text, or each row of ids ``(batch, time)``; returns the prompt with what follows it.

        A text ends where the model ends it, or after ``max_new_tokens``. Rows are ``(batch, time + max_new_tokens)``.
        ``sampling`` are options of :class:`~lightning_gpt.models.decoding.sampling.Sampling`, such as ``top_k=50``;
        ``temperature=0`` is greedy. For prompts of unequal length, ``lengths`` ``(batch,)`` gives the number of prompt
        ids in each row; the new tokens follow the prompt directly, and the padding comes after them. Past the end of
        learned positions the context slides: each token sees the last ``block_size`` ids. Dropout is off during
        generation. A text is drawn as ``lightning-gpt generate`` draws it from the same seed, by a ``generator`` on
        the CPU.

        Raises:
            CallError: An option is out of its range, or there is a text but no tokenizer.
        """
        how = Sampling(**sampling)
        with evaluating(self):
            if isinstance(prompt, Tensor):
                return continued(self, prompt, max_new_tokens, how, lengths, generator)
            if self.tokenizer is None:
                raise CallError("the model has no tokenizer: give token ids, or load it from a checkpoint that has one")
            if lengths is not None:
                raise CallError("lengths are given with a text; they belong to rows of token ids")
            device = next(chain(self.parameters(), self.buffers())).device
            ids = torch.tensor(prompt_tokens(self.tokenizer, prompt), device=device)
            tokens = sample_text(self, ids, max_new_tokens, how, generator or torch.default_generator)
            return "".join([prompt, *pieces(TextStream(self.tokenizer), tokens)])
