"""What changes when a part of the model is ablated, or its activation is replaced by that of another text.

Ablation replaces a head's output ``A V`` or an FFN's output by zero, or by its mean over the batch and positions of an
unmodified run. Wang et al. 2023, "Interpretability in the Wild" (2211.00593), section 2.1, prefer the mean: zero is a
value that later layers may never have seen. Activation patching: Vig et al. 2020 (2004.12265) and Meng et al. 2022
(2202.05262), section 2.1. Path patching: Wang et al. 2023, section 3.1 and appendix B; Goldowsky-Dill et al. 2023
(2304.05969). All use ``model.record(names, edits)``.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from lightning_gpt.analysis.logit_lens import stream_names
from lightning_gpt.errors import CallError
from lightning_gpt.models import LanguageModel
from lightning_gpt.models.double import double
from lightning_gpt.models.evaluating import evaluating
from lightning_gpt.models.record import Edit, layer_of

_FEW = 8
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
        found = re.fullmatch(r"([0-9]{1,7})\.([0-9]{1,7}|ffn)", text.strip())
        if not found:
            given = repr(text.strip()[:80])
            raise CallError(f"{given} is not a part of a model; allowed: LAYER.HEAD such as 3.2, or LAYER.ffn")
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
            raise CallError(f"the model has no part {part}; it has {_parts_text(known)}")


def _parts_text(known: Sequence[Part]) -> str:
    """Layers and heads of a model, and how its parts are written: ``2 layers with 4 heads (allowed: 0.0 to 1.3)``."""
    heads = [part for part in known if part.head is not None]
    networks = [str(part) for part in known if part.head is None]
    counts = sorted(set(Counter(part.layer for part in heads).values()))
    layers = 1 + max(part.layer for part in known)
    each = (
        f"{counts[0]} to {counts[-1]} heads" if len(counts) > 1 else f"{counts[0]} head{'s' if counts[0] > 1 else ''}"
    )
    has = f"{layers} layer{'s' if layers > 1 else ''} with {each}"
    allowed = f"{heads[0]} to {heads[-1]}" if len(heads) > 1 else str(heads[0])
    if not networks:
        return f"{has} and no FFN (allowed: {allowed})"
    few = len(networks) < layers and len(networks) <= _FEW
    return f"{has} (allowed: {allowed}, or {', '.join(networks) if few else 'LAYER.ffn'})"


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
    by_name = _by_output(model, parts)
    if kind == "zero":
        return {name: _replace([part.head for part in those], None) for name, those in by_name.items()}
    if reference_ids is None:
        raise CallError("a mean ablation needs reference_ids to take the mean over")
    with evaluating(model), model.record(by_name) as trace:
        model.hidden(reference_ids)
    # mean over batch and positions: (1, H, 1, D) for heads, (1, 1, d) for an FFN and for the one-head model
    means = {name: trace[name].mean(dim=(0, -2), keepdim=True) for name in by_name}
    return {name: _replace([part.head for part in those], means[name]) for name, those in by_name.items()}


def output_name(model: LanguageModel, part: Part) -> str:
    """The intermediate that holds the output of ``part``."""
    view = model.block_views()[part.layer]
    return f"{view.ffn_name}.output" if part.head is None else f"{view.mixer_name}.head_output"


def _by_output(model: LanguageModel, parts: Iterable[Part]) -> dict[str, list[Part]]:
    """The parts by the name of the intermediate that holds their outputs."""
    by_name: dict[str, list[Part]] = {}
    for part in parts:
        by_name.setdefault(output_name(model, part), []).append(part)
    return by_name


def _replace(heads: list[int | None], mean: Tensor | None) -> Edit:
    """Replace some heads of ``(batch, n_head, time, head_dim)``, or the whole output, by ``mean`` (0 if None)."""

    def edit(output: Tensor) -> Tensor:
        return with_heads(output, torch.zeros_like(output) if mean is None else mean.expand_as(output), heads)

    return edit


def with_heads(output: Tensor, other: Tensor, heads: list[int | None]) -> Tensor:
    """``output`` with ``heads`` from ``other``; all of it if it has no head axis (an FFN's, the one-head model's)."""
    if output.ndim < 4:
        return other
    changed = output.clone()
    changed[:, heads] = other[:, heads]
    return changed


def require_loss(ids: Tensor) -> None:
    """Check that a loss can be computed of ``ids`` ``(batch, time)``.

    Raises:
        CallError: If there is no second token.
    """
    time = ids.shape[1]
    if time < 2:
        plural = "" if time == 1 else "s"
        raise CallError(f"the text has {time} token{plural} and a loss needs 2: one to read and one to predict")


def text_loss(model: LanguageModel, ids: Tensor, edits: dict[str, Edit] | None = None) -> float:
    """Mean negative log-likelihood in nats of the tokens of ``ids`` ``(batch, time)`` after the first, under ``edits``.

    Raises:
        CallError: If there is no second token.
    """
    require_loss(ids)
    with evaluating(model), model.record([], edits):
        return float(double(model.token_nll(ids[:, :-1], ids[:, 1:])).mean())


def ablated_loss(model: LanguageModel, ids: Tensor, parts: Sequence[Part], kind: Ablation = "zero") -> float:
    """:func:`text_loss` of ``ids`` ``(batch, time)`` with ``parts`` ablated together; means are taken over ``ids``.

    Raises:
        CallError: If a part does not exist, or there is no second token.
    """
    require_loss(ids)
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
        positions: Positions to replace, none if empty; all when omitted, and then both texts must have the same length.

    Raises:
        CallError: If the batches or the lengths differ, a position is outside one of the texts, no intermediate
            matches, or one has no rows for positions or other sizes in the two runs, as what an expert of a mixture
            reads.
    """
    shortest = min(source_ids.shape[1], target_ids.shape[1])
    if len(source_ids) != len(target_ids):
        raise CallError(
            f"the texts have shapes {tuple(source_ids.shape)} and {tuple(target_ids.shape)}; each text is patched from "
            f"the one in its row, so both need as many rows"
        )
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
        edits = {}
        for name, tensor in source.items():
            layer, own = layer_of(model, name)
            edits[name] = _patch(name, tensor, layer.position_axis(own), source_ids.shape[1], positions)
        with model.record([], edits):
            patched: Tensor = model(target_ids)
    return patched


def _patch(name: str, source: Tensor, axis: int | None, time: int, positions: Sequence[int] | None) -> Edit:
    """Replace ``positions`` along ``axis``, or everything, by those of ``source``, recorded over ``time`` tokens."""
    if positions is not None and (axis is None or source.shape[axis] != time):
        raise CallError(f"{name!r} has no row for each position: leave it out, or give no positions")

    def edit(target: Tensor) -> Tensor:
        if positions is None or axis is None:
            if source.shape != target.shape:  # how many tokens an expert gets depends on the text
                raise CallError(
                    f"{name!r} is {tuple(source.shape)} in one run and {tuple(target.shape)} in the other: leave it out"
                )
            return source
        if source.shape[-1] != target.shape[-1]:  # attention matrices over different numbers of keys
            raise CallError(
                f"{name!r} has rows of {source.shape[-1]} and {target.shape[-1]}: patch texts of the same length"
            )
        rows = torch.tensor(positions, dtype=torch.long, device=target.device)  # also where there are none
        return target.index_copy(axis, rows, source.index_select(axis, rows))

    return edit


LOGITS: Literal["logits"] = "logits"
"""The receiver of the direct path to the output."""

Receiver = Part | Literal["logits"]
"""Where a path ends: a head or an FFN, with all that it reads, or the final norm and output head."""


def path_patched_logits(
    model: LanguageModel, source_ids: Tensor, target_ids: Tensor, sender: Part, receivers: Sequence[Receiver]
) -> Tensor:
    """Logits over ``target_ids`` if ``receivers`` alone read what ``sender`` puts out over ``source_ids``.

    A path is direct: from the sender through the residual stream into a receiver, with every other head and FFN held at
    its output of the unmodified run. A first pass takes the outputs that the receivers would then have, a second one
    inserts those and lets everything after them follow.

    Args:
        model: The model.
        source_ids: ``(batch, time)``, the run that the sender's output is taken from.
        target_ids: ``(batch, time)``, the run that it is inserted into.
        sender: A head or an FFN.
        receivers: Heads and FFNs after the sender, or :data:`LOGITS`.

    Returns:
        ``(batch, time, vocab_size)``.

    Raises:
        CallError: If the texts differ in shape, a part does not exist, or a receiver does not come after the sender.
    """
    if source_ids.shape != target_ids.shape:
        raise CallError(
            f"the texts have shapes {tuple(source_ids.shape)} and {tuple(target_ids.shape)}; paths are patched between "
            f"texts of the same shape"
        )
    ends = [receiver for receiver in receivers if isinstance(receiver, Part)]
    check_parts(model, [sender, *ends])
    for end in ends:
        if _order(end) <= _order(sender):
            raise CallError(f"no path leads from {sender} to {end}: it must come after the sender")
    last = stream_names(model)[-1]
    outputs = _by_output(model, all_parts(model))
    with evaluating(model):
        with model.record(output_name(model, sender)) as source:
            model.hidden(source_ids)
        with model.record([*outputs, last]) as target:
            model.hidden(target_ids)
        held = {name: target[name] for name in outputs}
        name = output_name(model, sender)
        held[name] = with_heads(held[name], source[name], [sender.head])
        computed: dict[str, Tensor] = {}
        with model.record(last, {name: _hold(computed, name, output) for name, output in held.items()}) as through:
            model.hidden(target_ids)
        edits: dict[str, Edit] = {}
        for name, those in _by_output(model, ends).items():
            edits[name] = _insert(computed[name], [part.head for part in those])
        if LOGITS in receivers:
            edits[last] = _add(through[last] - target[last])
        with model.record([], edits):
            logits: Tensor = model(target_ids)
    return logits


def _order(part: Part) -> tuple[int, bool]:
    """Parts with a larger one read what those with a smaller one wrote."""
    return part.layer, part.head is None


def _hold(computed: dict[str, Tensor], name: str, output: Tensor) -> Edit:
    """Replace an intermediate by ``output``, and keep in ``computed`` what it would have been."""

    def edit(value: Tensor) -> Tensor:
        computed[name] = value
        return output

    return edit


def _insert(output: Tensor, heads: list[int | None]) -> Edit:
    return lambda value: with_heads(value, output, heads)


def _add(change: Tensor) -> Edit:
    return lambda value: value + change
