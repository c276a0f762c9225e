"""Changes of a model's parts in a pass, as text: a head or a feed-forward network taken out, scaled or patched.

``3.2:zero`` takes head 2 of layer 3 out, ``3.ffn:mean`` replaces that layer's FFN by its mean over the text,
``3.2:scale:0.5`` halves what the head puts out, and ``3.2:patch`` takes it from a second text (``3.2:patch:4`` at
position 4 only). Several are separated by commas. What the words mean is said in
:mod:`lightning_gpt.analysis.interventions`.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from lightning_gpt.analysis.interventions import Part, check_parts, output_name, with_heads
from lightning_gpt.errors import CallError
from lightning_gpt.models import LanguageModel
from lightning_gpt.models.evaluating import evaluating
from lightning_gpt.models.record import Edit

ChangeKind = Literal["zero", "mean", "scale", "patch"]

_FORMS = "PART:zero, PART:mean, PART:scale:FACTOR, PART:patch or PART:patch:POSITION, such as 3.2:zero or 3.ffn:mean"
_LARGEST_FACTOR = 1000.0


@dataclass(frozen=True)
class Change:
    """What is done to the output of one part.

    Args:
        part: The head or FFN.
        kind: ``zero``, ``mean`` (over the text of the unmodified run), ``scale``, or ``patch`` (from a second text).
        factor: What ``scale`` multiplies by.
        position: Where ``patch`` replaces it; at every position if None.
    """

    part: Part
    kind: ChangeKind
    factor: float = 1.0
    position: int | None = None

    @classmethod
    def parse(cls, text: str) -> "Change":
        """The change that ``text`` names.

        Raises:
            CallError: It names none.
        """
        part, _, rest = text.strip().partition(":")
        kind, _, value = rest.partition(":")
        wrong = CallError(f"{text.strip()[:80]!r} is not a change; allowed: {_FORMS}")
        if kind not in get_args(ChangeKind) or (value != "" and kind not in ("scale", "patch")):
            raise wrong
        if kind == "scale":
            try:
                factor = float(value)
            except ValueError:
                raise wrong from None
            if not (math.isfinite(factor) and abs(factor) <= _LARGEST_FACTOR):
                raise CallError(f"the factor of {text.strip()[:80]!r} must be from −1,000 to 1,000")
            return cls(Part.parse(part), "scale", factor)
        if kind == "patch" and value:
            if not value.isascii() or not value.isdigit() or len(value) > 7:
                raise wrong
            return cls(Part.parse(part), "patch", position=int(value))
        return cls(Part.parse(part), kind)  # type: ignore[arg-type]

    def __str__(self) -> str:
        factor = repr(self.factor).removesuffix(".0")  # every digit: read again, it is the same number
        value = f":{factor}" if self.kind == "scale" else "" if self.position is None else f":{self.position}"
        return f"{self.part}:{self.kind}{value}"


def parse_changes(text: str) -> list[Change]:
    """The changes in a text, separated by commas; none in an empty one.

    Raises:
        CallError: One is not a change, or a part is changed twice.
    """
    changes = [Change.parse(each) for each in text.split(",")] if text.strip() else []
    parts = [change.part for change in changes]
    for part in parts:
        if parts.count(part) > 1:
            raise CallError(f"part {part} is changed twice; leave one of them out")
    return changes


def change_edits(
    model: LanguageModel, changes: Sequence[Change], ids: Tensor, other_ids: Tensor | None = None
) -> dict[str, Edit]:
    """The edits that make ``changes`` together, for ``model.record(names, edits)``.

    Args:
        model: The model.
        changes: What is changed.
        ids: The text ``(1, time)``. ``mean`` averages over all its tokens but the last, which a loss only predicts.
        other_ids: The second text ``(1, time)``, which ``patch`` takes outputs from.

    Raises:
        CallError: A part does not exist; there is no second text, or it has another number of tokens; a position is
            outside one of the texts.
    """
    check_parts(model, [change.part for change in changes])
    _check_patches(changes, ids, other_ids)
    of_text = _outputs(
        model, [change for change in changes if change.kind == "mean"], ids[:, : max(1, ids.shape[1] - 1)]
    )
    of_other = _outputs(model, [change for change in changes if change.kind == "patch"], other_ids)
    edits: dict[str, list[Callable[[Tensor], Tensor]]] = {}
    for change in changes:
        name = output_name(model, change.part)
        edits.setdefault(name, []).append(_edit(change, of_text.get(name), of_other.get(name)))
    return {name: _in_turn(each) for name, each in edits.items()}


def _check_patches(changes: Sequence[Change], ids: Tensor, other_ids: Tensor | None) -> None:
    for change in changes:
        if change.kind != "patch":
            continue
        if other_ids is None:
            raise CallError(f"{change} takes its output from a second text, and none is given")
        lengths = ids.shape[1], other_ids.shape[1]
        if change.position is None and lengths[0] != lengths[1]:
            raise CallError(
                f"the texts have {lengths[0]} and {lengths[1]} tokens; patching every position needs as many in both: "
                f"change one of them, or patch one position"
            )
        if change.position is not None and not change.position < min(lengths):
            raise CallError(
                f"position {change.position} is outside one of the texts (allowed: 0 to {min(lengths) - 1})"
            )


def _outputs(model: LanguageModel, changes: Sequence[Change], ids: Tensor | None) -> Mapping[str, Tensor]:
    """What the parts of ``changes`` put out over ``ids``, by the intermediate's name."""
    names = {output_name(model, change.part) for change in changes}
    if not names or ids is None:
        return {}
    with evaluating(model), model.record(names) as trace:
        model.hidden(ids)
    return trace


def _edit(change: Change, of_text: Tensor | None, of_other: Tensor | None) -> Callable[[Tensor], Tensor]:
    def edit(output: Tensor) -> Tensor:
        if change.kind == "scale":
            other = output * change.factor
        elif change.kind == "mean" and of_text is not None:
            other = of_text.mean(dim=(0, -2), keepdim=True).expand_as(output)
        elif change.kind == "patch" and of_other is not None:
            other = of_other
            if change.position is not None:
                other = output.clone()
                other[..., change.position, :] = of_other[..., change.position, :]
        else:
            other = torch.zeros_like(output)
        return with_heads(output, other, [change.part.head])

    return edit


def _in_turn(edits: Sequence[Callable[[Tensor], Tensor]]) -> Edit:
    def edit(output: Tensor) -> Tensor:
        for each in edits:
            output = each(output)
        return output

    return edit
