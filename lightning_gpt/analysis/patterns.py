"""The attention pattern of every head of a model over some tokens."""

from torch import Tensor

from lightning_gpt.models import LanguageModel
from lightning_gpt.models.evaluating import evaluating


def attention_patterns(model: LanguageModel, ids: Tensor) -> list[Tensor | None]:
    """Each block's attention ``(batch, n_head, time, keys)`` over ``ids`` ``(batch, time)``, in the model's precision.

    None for a block without softmax attention. Where a model also attends to other keys, those come first.
    """
    try:
        with evaluating(model), model.record("*attention.pattern") as trace:
            model.hidden(ids)
    except KeyError:  # no block has softmax attention
        return [None] * len(model.block_views())
    found = [trace.get(f"{view.mixer_name}.pattern") for view in model.block_views()]
    return [pattern if pattern is None else by_head(pattern) for pattern in found]


def by_head(pattern: Tensor) -> Tensor:
    """Add the head axis to the one-head model's ``(batch, time, keys)``."""
    return pattern if pattern.ndim == 4 else pattern[:, None]
