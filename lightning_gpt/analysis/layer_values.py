"""What each layer is worth: how much the loss rises when a block adds nothing, or only what it adds on average.

Sun et al. 2025, "The Curse of Depth in Large Language Models" (2502.05795), section 2: in pre-LN models the loss hardly
changes when one of the deep layers is removed. Men et al. 2024 (2403.03853) and Gromov et al. 2024 (2403.17887) prune
by the same observation.
"""

import itertools
from collections.abc import Callable, Sequence
from typing import Literal

from torch import Tensor

from lightning_gpt.analysis.interventions import require_loss, text_loss
from lightning_gpt.analysis.logit_lens import stream_names
from lightning_gpt.errors import CallError
from lightning_gpt.models import LanguageModel
from lightning_gpt.models.evaluating import evaluating
from lightning_gpt.models.record import Edit

Removal = Literal["skip", "mean"]
"""``skip``: the stream passes the block unchanged. ``mean``: the block adds its mean update over batch and positions of
the unmodified run, the same to every token."""


def layer_values(model: LanguageModel, ids: Tensor, removal: Removal = "skip") -> list[float]:
    """The rise in loss in nats when each block alone is removed, over ``ids`` ``(batch, time)``.

    0 or less for a block that is worth nothing.

    Raises:
        CallError: If there is no second token.
    """
    means = _mean_updates(model, ids) if removal == "mean" else None
    return rises(model, lambda edits: text_loss(model, ids, edits), means)


def layer_value(model: LanguageModel, ids: Tensor, layer: int, removal: Removal = "skip") -> float:
    """The rise of :func:`layer_values` for one block.

    Raises:
        CallError: If there is no such block, or no second token.
    """
    count = len(model.block_views())
    if not 0 <= layer < count:
        raise CallError(f"layer is {layer}; the model has {count} (allowed: 0 to {count - 1})")
    mean = _mean_updates(model, ids)[layer] if removal == "mean" else None
    return text_loss(model, ids, _without(model, stream_names(model), layer, mean)) - text_loss(model, ids)


def rises(
    model: LanguageModel, loss: Callable[[dict[str, Edit]], float], means: Sequence[Tensor] | None = None
) -> list[float]:
    """The rise of ``loss``, computed under some edits of ``model``, when each block alone is removed.

    With ``means``, one per block, as wide as the stream between blocks, a removed block adds its mean.
    """
    names, before = stream_names(model), loss({})
    return [
        loss(_without(model, names, layer, None if means is None else means[layer])) - before
        for layer in range(len(names) - 1)
    ]


def _mean_updates(model: LanguageModel, ids: Tensor) -> list[Tensor]:
    """What each block adds to the stream on average, ``(n_stream · dim,)`` each.

    Raises:
        CallError: If there is no second token.
    """
    require_loss(ids)
    with evaluating(model), model.record(stream_names(model)) as trace:
        model.hidden(ids[:, :-1])  # the last token is only predicted
    first, *others = stream_names(model)
    streams = [model.widened(trace[first]), *(trace[name] for name in others)]
    return [(y - x).mean(dim=(0, 1)) for x, y in itertools.pairwise(streams)]


def _without(model: LanguageModel, names: list[str], layer: int, mean: Tensor | None) -> dict[str, Edit]:
    """Edits that make the stream after a block what it was before it, plus ``mean``.

    Memory tokens enter the first block without an embedding; they go through all blocks.
    """
    first, entering, leaving, last = names[0], names[layer], names[layer + 1], names[-1]
    kept: dict[str, Tensor] = {}  # of the pass being run, from its embedding on

    def edit_of(name: str) -> Edit:
        def edit(stream: Tensor) -> Tensor:
            if name == first or (name == entering and kept):
                kept[name] = model.widened(stream) if name == first else stream
            if name == leaving and kept:
                stream = kept[entering] if mean is None else kept[entering] + mean
            if name == last:
                kept.clear()
            return stream

        return edit

    return {name: edit_of(name) for name in (first, entering, leaving, last)}
