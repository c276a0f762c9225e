"""One pass of a model over a text, with everything recorded that the page shows of it.

All numbers on the page come from the trace of such a pass, which is ``model.record()``'s.
"""

import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from lightning_gpt.analysis.attention import readable_tokens
from lightning_gpt.analysis.changes import change_edits, parse_changes
from lightning_gpt.analysis.head_matrices import matrix_names
from lightning_gpt.analysis.logit_lens import lens_at, lens_logits, streams_of
from lightning_gpt.errors import CallError
from lightning_gpt.exploring.requests import ShownText
from lightning_gpt.exploring.shelf import Explored, Shelf
from lightning_gpt.inference import checked_ids, prompt_ids
from lightning_gpt.models import LanguageModel
from lightning_gpt.models.evaluating import evaluating
from lightning_gpt.models.record import Trace

_MOST_PASSES = 4
"""Passes that are kept: what is shown, what it is compared with, and the same before the last key was pressed."""


@dataclass(frozen=True)
class TextPass:
    """A pass over one text.

    Args:
        explored: The model.
        shown: What was asked for.
        ids: The tokens, ``(time,)``.
        tokens: The tokens in readable form.
        trace: Streams, and all that attention sees of queries, keys, scores and what follows from them.
    """

    explored: Explored
    shown: ShownText
    ids: Tensor
    tokens: list[str]
    trace: Trace

    @property
    def model(self) -> LanguageModel:
        """The model."""
        return self.explored.model

    @cached_property
    def streams(self) -> Tensor:
        """The stream from the embedding to the last layer, ``(n_layer + 1, time, dim)``."""
        return torch.stack(streams_of(self.model, self.trace))[:, 0]

    @property
    def last_stream(self) -> Tensor:
        """The stream after the last layer, ``(time, dim)``."""
        return self.streams[-1]

    @cached_property
    def nll(self) -> np.ndarray:
        """Negative log-likelihood in nats of each token after the first."""
        with evaluating(self.model):
            _, _, nll = lens_at(self.model, self.last_stream[None], self.ids, 1)
        found: np.ndarray = nll[0]
        return found

    @property
    def loss(self) -> float | None:
        """Their mean; None for a single token."""
        return float(self.nll.astype(np.float64).mean()) if len(self.nll) else None

    def logits(self, row: int) -> Tensor:
        """The logits after one position, ``(vocab_size,)`` in fp32."""
        with evaluating(self.model):
            return lens_logits(self.model, self.last_stream[row]).float()

    def require_row(self, row: int) -> int:
        """``row``, if the text has it.

        Raises:
            CallError: It has not.
        """
        if row >= len(self.ids):
            raise CallError(f"row is {row}; the text has {_counted(len(self.ids), 'token')}")
        return row

    def require_column(self, layer: int, column: int) -> int:
        """``column``, if the attention of that layer has it.

        Raises:
            CallError: It has not.
        """
        count = self.trace[f"{self.model.block_views()[layer].mixer_name}.pattern"].shape[-1]
        if column >= count:
            raise CallError(f"column is {column}; the text has {_counted(count, 'key')}")
        return column

    def require_layer(self, layer: int) -> int:
        """``layer``, if the model has it.

        Raises:
            CallError: It has not.
        """
        count = len(self.model.block_views())
        if layer >= count:
            raise CallError(f"layer is {layer}; this model has {count} (allowed: 0 to {count - 1})")
        return layer

    def require_head(self, layer: int, head: int) -> int:
        """``head``, if the layer has it.

        Raises:
            CallError: It has not.
        """
        count = self.model.block_views()[self.require_layer(layer)].mixer.n_head
        if head >= count:
            raise CallError(f"head is {head}; layer {layer} has {count} (allowed: 0 to {count - 1})")
        return head


def _counted(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'} (allowed: {'0' if count == 1 else f'0 to {count - 1}'})"


class Passes:
    """The passes looked at last.

    Args:
        shelf: The models.
        longest: The longest text in tokens.
    """

    def __init__(self, shelf: Shelf, longest: int) -> None:
        self.shelf, self.longest = shelf, longest
        self._kept: OrderedDict[ShownText, TextPass] = OrderedDict()
        self._one_at_a_time = threading.Lock()

    def one(self, work: Callable[[], bytes]) -> bytes:
        """Do some work with the models, which can be recorded by one pass at a time."""
        with self._one_at_a_time:
            return work()

    def look(self, shown: ShownText) -> TextPass:
        """The pass that was asked for.

        Raises:
            CallError: There is no such model or part, or the text is too long.
        """
        if shown not in self._kept:
            self._kept[shown] = self._run(shown)
            while len(self._kept) > _MOST_PASSES:
                self._kept.popitem(last=False)
        self._kept.move_to_end(shown)
        return self._kept[shown]

    def ids_of(self, explored: Explored, text: str, more: tuple[int, ...] = ()) -> Tensor:
        """The ids ``(time,)`` of a text and of what follows it.

        Raises:
            CallError: They are too many, or not in the vocabulary.
        """
        ids = prompt_ids(explored.model, explored.tokenizer, text)
        ids = torch.cat([ids, torch.tensor(more, dtype=torch.long)])
        if len(ids) > self.longest:
            raise CallError(f"the text has {len(ids):,} tokens; this page shows at most {self.longest:,}")
        return checked_ids(explored.model, ids)

    def _run(self, shown: ShownText) -> TextPass:
        explored = self.shelf.get(shown.model)
        model = explored.model
        ids = self.ids_of(explored, shown.text, shown.more)
        other = self.ids_of(explored, shown.other)[None] if shown.other else None
        device = model.unembedding.device
        ids, other = ids.to(device), None if other is None else other.to(device)
        edits = change_edits(model, parse_changes(shown.changes), ids[None], other)
        with evaluating(model), model.record(matrix_names(model), edits) as trace:
            model.hidden(ids[None])
        return TextPass(explored, shown, ids, readable_tokens(explored.tokenizer, ids), trace)
