"""The stages that a pipeline divides a GPT into.

A stage keeps the whole model with the parts of other stages taken out, so that names stay those of one process.
"""

from collections.abc import Hashable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from lightning_gpt.errors import CallError
from lightning_gpt.models.context import Context
from lightning_gpt.models.gpt import GPT
from lightning_gpt.models.head import IGNORED
from lightning_gpt.models.layer import Absent
from lightning_gpt.models.part_losses import PartLosses
from lightning_gpt.models.positions.scheme import Positions
from lightning_gpt.parallel.context import ContextParallel
from lightning_gpt.parallel.drawing import seed_part
from lightning_gpt.parallel.layout import Layout, Schedule

STAGES_PER_PROCESS: Mapping[Schedule, int] = {"1f1b": 1, "interleaved": 2, "zero_bubble": 1}


@dataclass
class Run:
    """What all micro-batches of one call share.

    Args:
        counted: Number of targets of all micro-batches that are not ignored, for a micro-batch's part of the loss; None
            for the negative log-likelihood of each target.
        label_smoothing: As in the loss.
        z_loss: As in the loss.
        seeds: Seed of each micro-batch, by stage; None to draw from the generators as they are.
        autocast: Autocast's precision; None without.
    """

    counted: Tensor | None = None
    label_smoothing: float = 0.0
    z_loss: float = 0.0
    seeds: Sequence[Sequence[int]] | None = None
    autocast: torch.dtype | None = None


class ModelStage(nn.Module):
    """A range of a GPT's layers, with the embedding if it is the first stage and the head if it is the last.

    Args:
        model: The model, of which other parts may be missing.
        number: The stage's number, from 0.
        of: Number of stages.
        layers: Its layers.
        context: Divides the rows, if they are divided too.
    """

    def __init__(self, model: GPT, number: int, of: int, layers: range, context: ContextParallel | None) -> None:
        super().__init__()
        self.number, self.layers = number, layers
        self.is_first, self.is_last = number == 0, number == of - 1
        self._model, self._context = (model,), context  # in a tuple: its parts are registered below
        self.blocks = nn.ModuleList(model.blocks[layer] for layer in layers)
        self.ends = nn.ModuleList(ends_of(model, self.is_first, self.is_last))
        self.run = Run()
        self.brought: list[Hashable] = []
        """The keys of what earlier layers have carried to this stage, besides the stream."""
        self.carried: list[Hashable] = []
        """The keys of what it carries on."""

    def forward(
        self,
        x: Tensor,
        *brought: Tensor,
        ids: Tensor,
        targets: Tensor,
        documents: Tensor | None = None,
        number: Tensor | None = None,
    ) -> Any:
        """One micro-batch: the stream and what is carried to the next stage, or the last stage's score.

        Args:
            x: The stream ``(batch, time, dim)``; anything in the first stage.
            brought: What earlier layers carried here, in the order of :attr:`brought`.
            ids: Whole rows ``(batch, time)``.
            targets: Whole rows ``(batch, time)``.
            documents: Whole rows ``(batch, time)``, if documents are kept apart.
            number: The micro-batch's number, for each row.
        """
        if self.run.seeds is not None:
            assert number is not None
            seed_part(self.run.seeds[self.number][int(number[0])], ids.device)
            if self._context is not None:
                self._context.seed_own(ids.device)
        with autocast_to(ids.device, self.run.autocast):
            return self._passed(x, brought, ids, targets, documents)

    def _passed(
        self, x: Tensor, brought: Sequence[Tensor], ids: Tensor, targets: Tensor, documents: Tensor | None
    ) -> Any:
        (model,), others, total = self._model, None, None
        share = None if self.run.counted is None else (targets != IGNORED).sum().double() / self.run.counted
        weight = share
        if self._context is not None:
            own = self._context.own(ids, targets, documents)
            ids, targets, documents, others = own.ids, own.targets, own.documents, own.others
            total, weight = self._context.total, None if share is None else share * own.weight
        losses = None
        if share is not None and model.training and torch.is_grad_enabled():
            losses = PartLosses(share, total=total)
        context = model.context(ids, documents, others, losses=losses)
        x = model.embed(ids, context) if self.is_first else _received(x)
        for key, tensor in zip(self.brought, brought, strict=True):
            context.shared.carried[key] = _received(tensor)
        for layer in self.layers:
            x = model.layer(layer, x, context)
        result = self._score(model.finish(x, context), targets, weight) if self.is_last else self._sent(x, context)
        if losses is not None:
            losses.end()
        return result

    def _score(self, hidden: Tensor, targets: Tensor, weight: Tensor | None) -> Tensor:
        (model,), run = self._model, self.run
        if weight is None:
            nll = model.head.token_nll(hidden, targets)
            return nll if self._context is None else self._context.whole(nll)
        loss = model.head.loss(hidden, targets, run.label_smoothing, run.z_loss)
        return loss * weight.to(loss.dtype)

    def _sent(self, x: Tensor, context: Context) -> tuple[Tensor, ...]:
        carried = self._model[0].passed_on(self.layers[-1], context)
        self.carried = list(carried)
        # views, and what is only passed through, become tensors of their own: the schedules detach them in place
        return tuple(_of_its_own(tensor) for tensor in (x, *carried.values()))


def _received(x: Tensor) -> Tensor:
    """``x`` itself, with a gradient that can be sent back."""
    return cast(Tensor, _ContiguousGradient.apply(x))  # type: ignore[no-untyped-call]


class _ContiguousGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Tensor:
        return grad_outputs[0].contiguous()


def _of_its_own(x: Tensor) -> Tensor:
    plain = x.is_contiguous() and not x._is_view() and (x.grad_fn is not None or not torch.is_grad_enabled())
    return x if plain else x.clone(memory_format=torch.contiguous_format)


def ends_of(model: GPT, is_first: bool, is_last: bool) -> list[nn.Module]:
    """The parts outside the blocks that a stage needs."""
    positions = model.positions
    ends: list[nn.Module] = []
    if is_first or (is_last and model.head.is_tied):
        ends.append(model.token_embedding)
    if is_first:
        ends.append(model.embedding_norm)
    if positions.biases or (is_first and positions.is_absolute):
        ends.append(positions)
    if is_last:
        ends += [part for part in (model.diversity, model.final_norm, model.head) if part is not None]
    return ends


def autocast_to(device: torch.device, dtype: torch.dtype | None) -> AbstractContextManager[None]:
    """Autocast to ``dtype``, or no autocast if it is None."""
    return torch.autocast(device.type, dtype=dtype, enabled=dtype is not None)


def layers_of_stages(n_layer: int, stages: int) -> list[range]:
    """The layers of each stage, as even as possible."""
    return [range(n_layer * s // stages, n_layer * (s + 1) // stages) for s in range(stages)]


def stages_of_process(layout: Layout, process: int) -> range:
    """The numbers of the stages that a process of a pipeline runs."""
    return range(process, layout.pipeline * STAGES_PER_PROCESS[layout.schedule], layout.pipeline)


def layers_of_process(n_layer: int, layout: Layout, process: int) -> list[int]:
    """The layers that a process of a pipeline runs, over all its stages."""
    layers = layers_of_stages(n_layer, layout.pipeline * STAGES_PER_PROCESS[layout.schedule])
    return [layer for stage in stages_of_process(layout, process) for layer in layers[stage]]


def suits_schedule(layout: Layout, micro_batches: int) -> bool:
    """Whether a layout's pipeline can divide a batch into so many micro-batches."""
    if micro_batches < layout.pipeline:
        return False
    return layout.schedule == "1f1b" or micro_batches % (micro_batches // layout.pipeline) == 0


def require_stages(model: nn.Module, layout: Layout, compiles: bool = False) -> GPT:
    """The model, if it can be divided into the stages of a layout's pipeline.

    Args:
        model: The model.
        layout: The layout.
        compiles: Whether its blocks are compiled.

    Raises:
        CallError: It cannot; the message says what would work.
    """
    size, schedule, micro_batches = layout.pipeline, layout.schedule, layout.pipeline_micro_batches
    if not isinstance(model, GPT) or model.needs_whole_rows:
        name = getattr(model, "name", type(model).__name__)
        raise CallError(f"parallel.pipeline divides the layers of a gpt; {name} needs parallel.pipeline 1")
    config, stages = model.config, size * STAGES_PER_PROCESS[schedule]
    if config.n_unique is not None:
        raise CallError(
            f"parallel.pipeline gives each device layers of its own, but with n_unique {config.n_unique} layers share "
            f"blocks: leave n_unique out, or set parallel.pipeline to 1"
        )
    if config.loop is not None:
        raise CallError(
            "parallel.pipeline gives each device layers of its own, but with loop layers share blocks: leave loop out, "
            "or set parallel.pipeline to 1"
        )
    if config.n_layer < stages:
        fitting = config.n_layer // STAGES_PER_PROCESS[schedule]
        works = f"parallel.pipeline up to {fitting}" if fitting > 1 else "parallel.pipeline 1"
        if size <= config.n_layer:
            works += ", schedule 1f1b or zero_bubble"
        raise CallError(
            f"parallel.pipeline {size} with schedule {schedule} has {stages} stages, but the model has "
            f"{config.n_layer} layers: use {works}, or more layers"
        )
    has_table = next(iter(model.positions.parameters()), None) is not None
    if model.positions.biases and has_table and schedule != "1f1b" and config.n_layer > size:
        raise CallError(
            f"parallel.schedule {schedule} computes the backward pass of a device in parts, which share the table of "
            f"position biases: use schedule 1f1b"
        )
    if not suits_schedule(layout, micro_batches):
        of = "" if schedule == "1f1b" else f", and with schedule {schedule} a multiple of it"
        raise CallError(
            f"parallel.micro_batches is {micro_batches}; it must be at least parallel.pipeline, which is {size}{of}"
        )
    if schedule == "zero_bubble" and config.layer_drop is not None:
        raise CallError(
            "layer_drop and parallel.schedule zero_bubble cannot be combined, as it divides the backward pass, and a "
            "block that is left out has none: use schedule 1f1b or interleaved"
        )
    if schedule == "zero_bubble" and compiles:
        raise CallError(
            "compile_blocks and parallel.schedule zero_bubble cannot be combined, as it divides the backward pass: use "
            "schedule 1f1b or interleaved"
        )
    if schedule == "zero_bubble" and layout.shard > 1 and layout.reshard:
        raise CallError(
            "parallel.schedule zero_bubble needs a block's weights until their gradients, so they cannot be freed in "
            "between: set parallel.reshard to false, or use schedule 1f1b or interleaved"
        )
    return model


def take_out(model: GPT, stages: Sequence[ModelStage]) -> None:
    """Leave the model with the parts that these stages need."""
    held = {layer for stage in stages for layer in stage.layers}
    needed = {part for stage in stages for part in stage.ends}
    for layer in range(model.config.n_layer):
        if layer not in held:
            model.blocks[layer] = Absent(f"layer {layer}")
            model.layers[layer] = cast(Any, model.blocks[layer])
    for name in ("token_embedding", "embedding_norm", "final_norm", "head", "diversity"):
        if getattr(model, name) is not None and getattr(model, name) not in needed:
            model.register_module(name, Absent(name))
    positions = model.positions
    if positions.is_absolute and positions not in needed:
        model.positions = Positions()
        model.positions.limit = positions.limit
