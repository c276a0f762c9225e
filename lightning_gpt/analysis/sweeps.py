"""Patching sweeps: where in a model the difference between two texts is carried.

One activation after another of a run over the target text is replaced by that of a run over the source text, and a
number computed from the logits shows how far each brings the output towards the source's. Meng et al. 2022
(2202.05262), section 2.1 ("causal tracing"); Wang et al. 2023 (2211.00593); for the choice of the number, Zhang & Nanda
2024 (2309.16042), section 3.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from matplotlib.figure import Figure
from torch import Tensor

from lightning_gpt.analysis.plots import layer_heatmap
from lightning_gpt.errors import CallError
from lightning_gpt.models import LanguageModel
from lightning_gpt.models.evaluating import evaluating
from lightning_gpt.models.record import Edit
from lightning_gpt.models.view import BlockView

Swept = Literal["stream", "attention", "ffn", "heads"]
"""``stream``: the residual stream after each block, by position. ``attention``, ``ffn``: the output of that half of the
block, by position. ``heads``: each head's output, over all positions."""

Metric = Callable[[Tensor], Tensor]
"""Maps the logits after the last token of each text, ``(batch, vocab_size)``, to one number."""

_MOST_TOKENS = 1 << 12
"""How many tokens the copies of the texts may have that are run together."""


@dataclass(frozen=True)
class Sweep:
    """What each patch does.

    Args:
        what: What was patched.
        values: The metric under each patch, ``(n_layer, time)``, or ``(n_layer, n_head)``; nan where a layer has no
            such part.
        target: The metric of the target text without a patch.
        source: That of the source text.
    """

    what: Swept
    values: Tensor
    target: float
    source: float

    @property
    def effects(self) -> Tensor:
        """How far each patch moves the metric: 0 is the target's, 1 the source's. nan where the two do not differ."""
        between = self.source - self.target
        return (self.values - self.target) / (between if between else math.nan)

    def figure(self, tokens: Sequence[str] | None = None) -> Figure:
        """The effects as a heatmap, layer by position (labelled with the target's ``tokens``) or by head.

        Heads are labelled with their numbers, whatever ``tokens`` are.
        """
        title = {"heads": "each head, all positions", "stream": "residual stream after each layer"}.get(
            self.what, f"output of each layer's {self.what}"
        )
        columns, names = ("head", None) if self.what == "heads" else ("position", tokens)
        return layer_heatmap(self.effects.cpu().numpy(), columns, "effect (1: as the source)", title, names)


def logit_difference(right: int | Tensor, wrong: int | Tensor) -> Metric:
    """The mean over the batch of the logit of ``right`` less that of ``wrong``, after the last token.

    Each is one token id, or one per text, ``(batch,)``.
    """

    def difference(logits: Tensor) -> Tensor:
        texts = torch.arange(len(logits), device=logits.device)
        first, second = (torch.as_tensor(ids, device=logits.device).expand(len(texts)) for ids in (right, wrong))
        return (logits[texts, first] - logits[texts, second]).mean()

    return difference


def patching_sweep(
    model: LanguageModel, source_ids: Tensor, target_ids: Tensor, metric: Metric, what: Swept = "stream"
) -> Sweep:
    """Patch one part and position (or head) after another from the source's run into the target's.

    Args:
        model: The model.
        source_ids: ``(batch, time)``, the texts that activations are taken from.
        target_ids: The same shape, the texts that they are inserted into.
        metric: The number that is computed from the logits, such as :func:`logit_difference`.
        what: What is patched.

    Raises:
        CallError: If the texts differ in shape, or no layer has such a part.
    """
    if source_ids.shape != target_ids.shape:
        raise CallError(
            f"the texts have shapes {tuple(source_ids.shape)} and {tuple(target_ids.shape)}; a sweep patches between "
            f"texts of the same shape"
        )
    names = [_name(view, what) for view in model.block_views()]
    swept = [name for name in names if name is not None]
    if not swept:
        raise CallError(f"no layer of the model has a part {what}")
    with evaluating(model):
        with model.record(swept) as trace:
            source = metric(_last_logits(model, source_ids))
        target = metric(_last_logits(model, target_ids))
        n_head = max(view.mixer.n_head for view in model.block_views())
        values = target.new_full((len(names), n_head if what == "heads" else target_ids.shape[1]), torch.nan)
        for layer, (name, view) in enumerate(zip(names, model.block_views(), strict=True)):
            if name is not None:
                count = view.mixer.n_head if what == "heads" else target_ids.shape[1]
                values[layer, :count] = _each(model, target_ids, metric, name, trace[name], count, what == "heads")
    return Sweep(what, values, float(target), float(source))


def _last_logits(model: LanguageModel, ids: Tensor) -> Tensor:
    return model.head(model.hidden(ids)[:, -1])  # type: ignore[no-any-return]


def _name(view: BlockView, what: Swept) -> str | None:
    if what == "stream":
        return view.stream_name
    if what == "ffn":
        return None if view.ffn_name is None else f"{view.ffn_name}.output"
    return f"{view.mixer_name}.{'head_output' if what == 'heads' else 'output'}"


def _each(
    model: LanguageModel, ids: Tensor, metric: Metric, name: str, source: Tensor, count: int, of_heads: bool
) -> Tensor:
    """The metric with each of ``count`` positions or heads of one intermediate patched, ``(count,)``."""
    together, found = max(1, _MOST_TOKENS // ids.numel()), []
    for start in range(0, count, together):
        places = range(start, min(start + together, count))
        with model.record([], {name: _patch_each(source, places, of_heads)}):
            logits = _last_logits(model, ids.repeat(len(places), 1))
        found += [metric(one) for one in logits.chunk(len(places))]
    return torch.stack(found)


def _patch_each(source: Tensor, places: Sequence[int], of_heads: bool) -> Edit:
    """Replace the n-th place, a head (axis 1, if any) or a position (axis −2), in the n-th copy of the batch."""

    def edit(target: Tensor) -> Tensor:
        changed = target.clone()
        for copy, place in zip(changed.chunk(len(places)), places, strict=True):
            if not of_heads:
                copy[..., place, :] = source[..., place, :]
            elif copy.ndim == 4:
                copy[:, place] = source[:, place]
            else:  # the one-head model's has no head axis
                copy.copy_(source)
        return changed

    return edit
