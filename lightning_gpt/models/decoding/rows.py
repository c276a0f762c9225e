"""Texts that one model continues together, of any lengths; they join and leave between two tokens.

This is continuous batching (Yu et al. 2022, "Orca", OSDI, section 3.1): a pass reads one more token of every text that
is being continued, whatever their lengths, and a text that ends makes room for the next one at once.
"""

from abc import ABC, abstractmethod
from typing import Protocol

import torch
from torch import Tensor

from lightning_gpt.models.kv_cache import Cache
from lightning_gpt.models.row_cache import RowCache


class ReadsRows(Protocol):
    """What is needed of a language model, in evaluation mode and without gradients."""

    def next_logits(self, ids: Tensor, lengths: Tensor | None = None, cache: Cache | None = None) -> Tensor:
        """Logits of the token after each row."""

    def new_cache(self, capacity: int) -> Cache:
        """An empty cache."""


class JoiningRows(ABC):
    """Texts being continued, numbered from 0, and at most one more that is being read.

    Args:
        model: Reads them.
        most: The largest number of texts that are continued at once.
        capacity: The longest text, in tokens.
    """

    shares_passes: bool
    """Whether one pass reads all rows."""

    def __init__(self, model: ReadsRows, most: int, capacity: int) -> None:
        self.model, self.most, self.capacity = model, most, capacity
        self.n_row = 0

    @abstractmethod
    def begin(self) -> None:
        """Begin to read another text, in the place of one that was begun and has not joined."""

    @abstractmethod
    def read(self, ids: Tensor) -> Tensor:
        """Read ``ids`` ``(time,)`` of the text that was begun: the logits ``(1, vocab_size)`` after them."""

    @abstractmethod
    def join(self) -> None:
        """The text that was read is continued from now on, as the last row."""

    def join_copy(self, row: int) -> None:
        """Continue a copy of a row as the last row; only if rows share passes."""
        raise NotImplementedError

    @abstractmethod
    def feed(self, tokens: Tensor) -> Tensor:
        """Read one more token of every row, ``(n_row,)``: the next logits ``(n_row, vocab_size)``."""

    @abstractmethod
    def leave(self, row: int) -> None:
        """Forget a row; the last row takes its number."""

    @abstractmethod
    def clear(self) -> None:
        """Forget all rows, also after a pass that failed."""

    @property
    @abstractmethod
    def n_bytes(self) -> int | None:
        """Memory allocated for good, in bytes; None if it is allocated text by text."""


class SharedRows(JoiningRows):
    """Rows of one :class:`~lightning_gpt.models.row_cache.RowCache`: one pass reads a token of each."""

    shares_passes = True

    def __init__(self, model: ReadsRows, most: int, capacity: int) -> None:
        super().__init__(model, most, capacity)
        self._cache = RowCache(model.new_cache(capacity), most)

    def begin(self) -> None:
        self._cache.forget(self.n_row)

    def read(self, ids: Tensor) -> Tensor:
        self._cache.open(self.n_row, self.n_row + 1)
        return self.model.next_logits(ids[None], cache=self._cache)

    def join(self) -> None:
        self.n_row += 1

    def join_copy(self, row: int) -> None:
        self._cache.move(row, self.n_row)
        self.n_row += 1

    def feed(self, tokens: Tensor) -> Tensor:
        self._cache.open(0, self.n_row)
        return self.model.next_logits(tokens[:, None], cache=self._cache)

    def leave(self, row: int) -> None:
        last, most = self.n_row - 1, self.most
        if row != last:
            self._cache.move(last, row)
        if self.n_row < most and self._cache.counts[self.n_row]:  # the text that is being read moves up
            self._cache.move(self.n_row, last)
            self._cache.forget(self.n_row)
        else:
            self._cache.forget(last)
        self.n_row = last

    def clear(self) -> None:
        self.n_row = 0
        for row in range(self.most):
            self._cache.forget(row)

    @property
    def n_bytes(self) -> int:
        return self._cache.n_bytes


class SeparateRows(JoiningRows):
    """Rows with a cache each, for models whose state cannot be divided by rows: each is read in a pass of its own."""

    shares_passes = False

    def __init__(self, model: ReadsRows, most: int, capacity: int) -> None:
        super().__init__(model, most, capacity)
        self._caches: list[Cache] = []
        self._begun: Cache | None = None

    def begin(self) -> None:
        self._begun = self.model.new_cache(self.capacity)

    def read(self, ids: Tensor) -> Tensor:
        return self.model.next_logits(ids[None], cache=self._begun)

    def join(self) -> None:
        assert self._begun is not None
        self._caches.append(self._begun)
        self._begun = None
        self.n_row += 1

    def feed(self, tokens: Tensor) -> Tensor:
        read = zip(tokens[:, None, None], self._caches, strict=True)
        return torch.cat([self.model.next_logits(token, cache=cache) for token, cache in read])

    def leave(self, row: int) -> None:
        self._caches[row] = self._caches[-1]
        self._caches.pop()
        self.n_row -= 1

    def clear(self) -> None:
        self._caches, self._begun, self.n_row = [], None, 0

    @property
    def n_bytes(self) -> None:
        return None


def rows_for(model: ReadsRows, most: int, capacity: int) -> JoiningRows:
    """Rows that share passes where every layer's state can be divided by rows, otherwise separate ones."""
    kind = SharedRows if model.new_cache(1).can_share else SeparateRows
    return kind(model, most, capacity)
