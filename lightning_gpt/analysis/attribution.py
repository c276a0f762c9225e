"""Direct logit attribution: how much of a logit each part of the model wrote into the residual stream.

The last layer's stream is a sum: the embeddings, then what each block half added. With the statistics of the final norm
held at those of the whole stream (and bounded logits at their ratio to what is bounded), the logits are linear in that
sum, so each term has its own share of them. Elhage et
al. 2021, "A Mathematical Framework for Transformer Circuits", section "Zero-layer transformers" and after; Wang et al.
2023 (2211.00593), section 3.1, there as the direct effect on a difference of two logits.

What a term does through later layers is not counted: for that, see
:func:`~lightning_gpt.analysis.interventions.path_patched_logits`.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_gpt.analysis.logit_lens import stream_names
from lightning_gpt.errors import CallError
from lightning_gpt.models import LanguageModel
from lightning_gpt.models.evaluating import evaluating
from lightning_gpt.models.record import Trace
from lightning_gpt.models.view import BlockView

_ROUNDING = 1e-3
"""How far what the heads leave over of a token's update may be from the bias, relative to that update."""
_OF_PRECISION = 4.0
"""How much more it may be, in what the precision rounds of the streams and terms: bf16 has 8 bits."""


@dataclass(frozen=True)
class Attribution:
    """The terms of a logit.

    Args:
        parts: Names of the terms: ``embedding``, ``0.attention`` (or ``0.0``, ``0.1``, … by head, and ``0.bias``),
            ``0.ffn``, …, ``bias`` of the final norm and
            of the output head.
        values: ``(parts, batch, time)``: what each adds to the logit of the target, less what it adds to the mean logit
            of all tokens (or to the other token's). Over the parts they add up to the model's logit, less that mean.
    """

    parts: list[str]
    values: Tensor

    def mean(self) -> dict[str, float]:
        """The mean of each part over all tokens."""
        return dict(zip(self.parts, self.values.mean(dim=(1, 2)).tolist(), strict=True))

    def heads(self, position: int | None = None) -> Tensor:
        """What each head adds, ``(n_layer, n_head)``: at one position, or the mean of all; the mean over the batch.

        Raises:
            CallError: If the terms are not by head.
        """
        names = [part.split(".") for part in self.parts]
        places = [(int(name[0]), int(name[1])) for name in names if len(name) == 2 and name[1].isdigit()]
        if not places:
            raise CallError("the terms are not by head: give direct_logit_attribution by_head=True")
        values = self.values if position is None else self.values[..., [position]]
        grid = values.new_full((1 + max(layer for layer, _ in places), 1 + max(head for _, head in places)), torch.nan)
        of_parts = dict(zip(self.parts, values.mean(dim=(1, 2)), strict=True))
        for layer, head in places:
            grid[layer, head] = of_parts[f"{layer}.{head}"]
        return grid


def direct_logit_attribution(
    model: LanguageModel, ids: Tensor, targets: Tensor, against: Tensor | None = None, by_head: bool = False
) -> Attribution:
    """What each part of ``model`` adds directly to the logit of ``targets`` after each token of ``ids``.

    A block half's term is what it changes in the stream: exactly its branch's output in pre-LN models, and the whole
    change under rules that also scale, norm or mix the stream. Of several copies of the stream, their sum counts.

    Args:
        model: The model.
        ids: The tokens to read, ``(batch, time)``.
        targets: The token whose logit is explained at each position, ``(batch, time)``.
        against: Another token at each position, to explain the difference of the two logits; None for the mean logit of
            all tokens.
        by_head: Whether to split attention into its heads and its output bias.

    Raises:
        CallError: If the heads are asked for and a block does not add their outputs to the stream as they are.
    """
    views = model.block_views()
    halves = [view.half_name for view in views if view.half_name is not None]
    outputs = [f"{view.mixer_name}.head_output" for view in views] if by_head else []
    with evaluating(model), model.record([*stream_names(model), *halves, *outputs]) as trace:
        model.hidden(ids)
    return attribution_of(model, trace, targets, against, by_head)


def attribution_of(
    model: LanguageModel, trace: Trace, targets: Tensor, against: Tensor | None = None, by_head: bool = False
) -> Attribution:
    """:func:`direct_logit_attribution` in the pass that ``trace`` recorded, which may have been edited.

    ``trace`` has the streams, those between block halves, and ``head_output`` of every layer if ``by_head``.

    Raises:
        CallError: As there.
    """
    views = model.block_views()
    with evaluating(model):
        last = model.narrowed(trace[stream_names(model)[-1]])
        direction, constant = model.head.direction(model.read_out(last), targets, against)
        parts, values = [], []
        for name, term in _terms(model, trace, views, by_head):
            parts.append(name)
            values.append((model.read_out_share(term, last) * direction).sum(dim=-1))
        norm_bias = model.read_out(last) - model.read_out_share(last, last)
        return Attribution([*parts, "bias"], torch.stack([*values, (norm_bias * direction).sum(dim=-1) + constant]))


def _terms(model: LanguageModel, trace: Trace, views: list[BlockView], by_head: bool) -> Iterator[tuple[str, Tensor]]:
    """The terms ``(batch, time, dim)`` of the last stream, by name."""
    stream = model.narrowed(model.widened(trace["embedding"]))
    yield "embedding", stream
    for view in views:
        after = model.narrowed(trace[view.half_name or view.stream_name])
        if by_head:
            yield from head_terms(view, trace[f"{view.mixer_name}.head_output"], stream, after)
        else:
            yield f"{view.layer}.attention", after - stream
        stream = model.narrowed(trace[view.stream_name])
        if view.half_name is not None:
            yield f"{view.layer}.ffn", stream - after


def head_terms(view: BlockView, output: Tensor, before: Tensor, after: Tensor) -> Iterator[tuple[str, Tensor]]:
    """What each head of a block adds to the stream, and the bias.

    Args:
        view: The block.
        output: Its recorded ``head_output``.
        before: The stream that enters it, ``(batch, time, dim)``.
        after: The stream behind its attention.

    Raises:
        CallError: If their difference is not the sum of the heads' outputs behind W_O, apart from a bias.
    """
    matrices = view.mixer.head_matrices()
    by_head = output if output.ndim == 4 else output[:, None]  # the one-head model has no head axis
    written = [] if matrices is None else [by_head[:, head] @ w_o for head, w_o in enumerate(matrices.w_o)]
    added = after - before
    rest = added - sum(written)
    bias = 0.0 if matrices is None or matrices.b_o is None else matrices.b_o
    is_added = bool(written) and view.written(written[0]) is not None
    if is_added:
        # token by token: one of them may be so large that its rounding hides what is wrong with the others
        sizes = sum(each.norm(dim=-1) for each in (before, after, *written))
        rounded = _OF_PRECISION * torch.finfo(added.dtype).eps * sizes
        is_added = bool(((rest - bias).norm(dim=-1) <= _ROUNDING * added.norm(dim=-1) + rounded).all())
    if not is_added:
        raise CallError(
            f"block {view.layer} does not add its heads' outputs to the stream as they are, so they have no terms of "
            f"their own; leave out by_head"
        )
    for head, term in enumerate(written):
        yield f"{view.layer}.{head}", term
    yield f"{view.layer}.bias", rest
