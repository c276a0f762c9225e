"""What changes when a part of the model is ablated, or its activation is replaced by that of another text.

Ablation replaces a head's output ``A V`` or an FFN's output by zero, or by its mean over the batch and positions of an
unmodified run. Wang et al. 2023, "Interpretability in the Wild" (2211.00593), section 2.1, prefer the mean: zero is a
value that later layers may never have seen. Activation patching: Vig et al. 2020 (2004.12265) and Meng et al. 2022
(2202.05262), section 2.1. Both use ``model.record(names, edits)``.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from lightning_gpt.errors import CallError
from lightning_gpt.models import LanguageModel
from lightning_gpt.models.evaluating import evaluating
from lightning_gpt.models.record import Edit

Ablation = Literal["zero", "mean"]
"""``zero``: the output becomes 0. ``mean``: it becomes its mean over batch and positions of the unmodified run."""


@dataclass(frozen=True)
class Part:
    """A head of a layer, or the layer's FFN where ``head`` is None."""

    layer: int
    head: int | None

    @classmethod
    def parse(cls, text: str) -> "Part":
        """``3.2`` is head 2 of layer 3, ``3.ffn`` that layer's FFN.

        Raises:
            CallError: If ``text`` is neither.
        """
        found = re.fullmatch(r"(\d+)\.(\d+|ffn)", text.strip())
        if not found:
            raise CallError(f"{text.strip()!r} is not a part of a model; allowed: LAYER.HEAD such as 3.2, or LAYER.ffn")
        return cls(int(found[1]), None if found[2] == "ffn" else int(found[2]))

    def __str__(self) -> str:
        return f"{self.layer}.{'ffn' if self.head is None else self.head}"


def all_parts(model: LanguageModel) -> list[Part]:
    """For every layer, its heads and then its FFN; for a one-head model, its head."""
    parts: list[Part] = []
    for layer, view in enumerate(model.block_views()):
        parts += [Part(layer, head) for head in range(view.mixer.n_head)]
        parts += [] if view.ffn_name is None else [Part(layer, None)]
    return parts


def check_parts(model: LanguageModel, parts: Iterable[Part]) -> None:
    """Check that ``model`` has all ``parts``.

    Raises:
        CallError: If it does not have one of them; the message lists what it has.
    """
    known = all_parts(model)
    for part in parts:
        if part not in known:
            layers = max(other.layer for other in known) + 1
            heads = 1 + max(other.head for other in known if other.head is not None)
            has = "1 layer with 1 head and no FFN (allowed: 0.0)"
            if any(other.head is None for other in known):
                has = f"{layers} layers with {heads} heads (allowed: 0.0 to {layers - 1}.{heads - 1}, or LAYER.ffn)"
            raise CallError(f"the model has no part {part}; it has {has}")


def ablation_edits(
    model: LanguageModel, parts: Sequence[Part], kind: Ablation = "zero", reference_ids: Tensor | None = None
) -> dict[str, Edit]:
    """The edits that ablate ``parts`` together, for ``model.record(names, edits)``.

    Args:
        model: The model.
        parts: Heads and FFNs of the model.
        kind: ``zero`` or ``mean``.
        reference_ids: ``(batch, time)``, the unmodified run over which ``mean`` averages; ignored for ``zero``.

    Raises:
        CallError: If a part does not exist, or ``mean`` has no reference.
    """
    check_parts(model, parts)
    by_name: dict[str, list[Part]] = {}
    for part in parts:
        by_name.setdefault(_output_name(model, part), []).append(part)
    if kind == "zero":
        return {name: _replace([part.head for part in those], None) for name, those in by_name.items()}
    if reference_ids is None:
        raise CallError("a mean ablation needs reference_ids to take the mean over")
    with evaluating(model), model.record(by_name) as trace:
        model.hidden(reference_ids)
    # mean over batch and positions: (1, H, 1, D) for heads, (1, 1, d) for an FFN and for the one-head model
    means = {name: trace[name].mean(dim=(0, -2), keepdim=True) for name in by_name}
    return {name: _replace([part.head for part in those], means[name]) for name, those in by_name.items()}


def _output_name(model: LanguageModel, part: Part) -> str:
    view = model.block_views()[part.layer]
    return f"{view.ffn_name}.output" if part.head is None else f"{view.mixer_name}.head_output"


def _replace(heads: list[int | None], mean: Tensor | None) -> Edit:
    """Replace some heads of ``(batch, n_head, time, head_dim)``, or the whole output, by ``mean`` (0 if None)."""

    def edit(output: Tensor) -> Tensor:
        instead = torch.zeros_like(output) if mean is None else mean.expand_as(output)
        if output.ndim < 4:  # the output of an FFN or of the one-head model has no head axis
            return instead
        changed = output.clone()
        changed[:, heads] = instead[:, heads]
        return changed

    return edit


def text_loss(model: LanguageModel, ids: Tensor, edits: dict[str, Edit] | None = None) -> float:
    """Mean negative log-likelihood in nats of the tokens of ``ids`` ``(batch, time)`` after the first, under ``edits``.

    Raises:
        CallError: If there is no second token.
    """
    if ids.shape[1] < 2:
        raise CallError(f"the text has {ids.shape[1]} token and a loss needs 2: one to read and one to predict")
    with evaluating(model), model.record([], edits):
        return float(model.token_nll(ids[:, :-1], ids[:, 1:]).double().mean())


def ablated_loss(model: LanguageModel, ids: Tensor, parts: Sequence[Part], kind: Ablation = "zero") -> float:
    """:func:`text_loss` of ``ids`` ``(batch, time)`` with ``parts`` ablated together; means are taken over ``ids``."""
    # the last token is only predicted, so the run that is averaged does not contain it
    return text_loss(model, ids, ablation_edits(model, parts, kind, ids[:, :-1]))


def ablate_each(model: LanguageModel, ids: Tensor, kind: Ablation = "zero") -> Iterator[tuple[Part, float]]:
    """Ablate each head and each FFN separately; yields each part with its change in loss, in nats."""
    before = text_loss(model, ids)
    for part in all_parts(model):
        yield part, ablated_loss(model, ids, [part], kind) - before


def patched_logits(
    model: LanguageModel,
    source_ids: Tensor,
    target_ids: Tensor,
    names: Iterable[str] | str,
    positions: Sequence[int] | None = None,
) -> Tensor:
    """Logits ``(batch, time, vocab_size)`` over ``target_ids`` with activations from a run over ``source_ids``.

    Args:
        model: The model.
        source_ids: ``(batch, time)``, the run that the activations are taken from.
        target_ids: ``(batch, time)``, the run that they are inserted into.
        names: Which intermediates, by name or shell pattern (``blocks.3.attention.head_output``, ``blocks.*``).
        positions: Positions to replace; all when omitted, and then both texts must have the same length.

    Raises:
        CallError: If the lengths differ, a position is outside one of the texts, or no intermediate matches.
    """
    shortest = min(source_ids.shape[1], target_ids.shape[1])
    if positions is None and source_ids.shape != target_ids.shape:
        raise CallError(
            f"the texts have {source_ids.shape[1]} and {target_ids.shape[1]} tokens; patching all positions needs "
            f"texts of the same length; otherwise give positions"
        )
    for position in positions or ():
        if not 0 <= position < shortest:
            raise CallError(f"position {position} is outside one of the texts (allowed: 0 to {shortest - 1})")
    with evaluating(model):
        try:
            with model.record(names) as source:
                model(source_ids)
        except KeyError as error:
            raise CallError(error.args[0]) from None
        with model.record([], {name: _patch(name, tensor, positions) for name, tensor in source.items()}):
            patched: Tensor = model(target_ids)
    return patched


def _patch(name: str, source: Tensor, positions: Sequence[int] | None) -> Edit:
    """Replace the rows ``positions`` by those of ``source`` (axis −2 is the position in every intermediate)."""
    if positions is None:
        return source
    rows = list(positions)

    def edit(target: Tensor) -> Tensor:
        if source.shape[-1] != target.shape[-1]:  # attention matrices over different numbers of keys
            raise CallError(
                f"{name!r} has rows of {source.shape[-1]} and {target.shape[-1]}: patch texts of the same length"
            )
        changed = target.clone()
        changed[..., rows, :] = source[..., rows, :]
        return changed

    return edit
