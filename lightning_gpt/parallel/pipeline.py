"""Pipeline parallel: processes divide the layers; micro-batches flow through them (Huang et al. 2018, 1811.06965).

The schedules are those of ``torch.distributed.pipelining``: ``1f1b`` (Narayanan et al. 2020, "Memory-Efficient
Pipeline-Parallel DNN Training", 2006.09503), ``interleaved`` with two stages a process (Narayanan et al. 2021,
2104.04473, section 2.2), and ``zero_bubble``, which computes the gradients of weights later, when a process would wait
(Qi et al. 2023, 2401.10241, ZB-H1).
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.pipelining import PipelineStage, Schedule1F1B, ScheduleInterleaved1F1B
from torch.distributed.pipelining.schedules import ScheduleInterleavedZeroBubble

from lightning_gpt.errors import CallError
from lightning_gpt.models.gpt import GPT
from lightning_gpt.models.head import IGNORED
from lightning_gpt.parallel.context import ContextParallel
from lightning_gpt.parallel.drawing import draw_apart
from lightning_gpt.parallel.layout import Schedule
from lightning_gpt.parallel.stages import (
    STAGES_PER_PROCESS,
    ModelStage,
    Run,
    autocast_to,
    ends_of,
    layers_of_stages,
    take_out,
)
from lightning_gpt.parallel.tied import Copies


@dataclass(frozen=True)
class _Form:
    """What a tensor between two stages looks like."""

    key: Hashable  # of ``Shared.carried``; None for the residual stream
    shape: tuple[int, ...]
    dtype: torch.dtype

    def empty(self, device: torch.device | str) -> Tensor:
        return torch.empty(self.shape, dtype=self.dtype, device=device)


class Pipeline:
    """Runs loss and ``token_nll`` of a GPT through stages; every process is given the same whole rows.

    ``loss`` runs the forward and backward passes of all micro-batches at once; the returned loss delivers the
    gradients when its own backward pass runs, scaled by its gradient. So gradients can be zeroed, accumulated and
    scaled around it as for any other loss.

    Args:
        model: The model, which :func:`~lightning_gpt.parallel.stages.require_stages` accepts; it must be whole, and is
            left with the parts of this process's stages.
        group: The processes of the pipeline.
        schedule: The order of micro-batches.
        micro_batches: Micro-batches that a batch is divided into.
        context: Divides the rows, if they are divided too.
    """

    def __init__(
        self,
        model: GPT,
        group: dist.ProcessGroup,
        schedule: Schedule,
        micro_batches: int,
        context: ContextParallel | None = None,
    ) -> None:
        self.model, self.group, self.schedule, self.micro_batches = model, group, schedule, micro_batches
        self.n_stage = group.size() * STAGES_PER_PROCESS[schedule]
        self.copies = Copies([self._ends_of(rank) for rank in range(group.size())], group)
        layers = layers_of_stages(model.config.n_layer, self.n_stage)
        own = range(group.rank(), self.n_stage, group.size())
        self.stages = [ModelStage(model, number, self.n_stage, layers[number], context) for number in own]
        """This process's stages."""
        take_out(model, self.stages)
        self.divides_by: Tensor | None = None
        """What the sum of all targets' losses is divided by; None for the number of targets that count.

        A loss of copies of the model that see different numbers of targets is the mean of their shares. Sharding
        averages gradients as they are made, so a share has to have its weight from the beginning.
        """
        self._forms: dict[Hashable, list[_Form]] = {}
        self._schedules: dict[Hashable, Any] = {}

    def _ends_of(self, rank: int) -> list[nn.Module]:
        """The parts outside the blocks that a process of the group needs."""
        numbers = range(rank, self.n_stage, self.group.size())
        return [part for s in numbers for part in ends_of(self.model, s == 0, s == self.n_stage - 1)]

    # ---- passes ----

    def loss(
        self, ids: Tensor, targets: Tensor, documents: Tensor | None, label_smoothing: float, z_loss: float
    ) -> Tensor:
        """The loss, equal in all stages; its backward pass delivers the gradients of this process's stages."""
        counted = (targets != IGNORED).sum().clamp(min=1) if self.divides_by is None else self.divides_by
        run = Run(counted, label_smoothing, z_loss, autocast=_enabled_autocast(ids))
        parameters = [weight for weight in self.model.parameters() if weight.requires_grad]
        if not (self.model.training and torch.is_grad_enabled()):
            scores = self._through(run, ids, targets, documents)
            return self._sent_to_all(None if scores is None else torch.stack(scores).sum(), ids.device)
        if len(ids) % self.micro_batches:
            raise CallError(
                f"a batch of {len(ids)} rows cannot be divided into {self.micro_batches} micro-batches: set "
                f"data.batch_size to a multiple of parallel.micro_batches"
            )
        seeds = torch.tensor(draw_apart(self.n_stage * self.micro_batches)).view(self.n_stage, -1).tolist()
        run.seeds = seeds
        before = [weight.grad for weight in parameters]
        for weight in parameters:
            weight.grad = None
        losses = self._scheduled(run, ids, targets, documents)
        self.copies.sum_gradients()
        made = [weight.grad for weight in parameters]
        for weight, grad in zip(parameters, before, strict=True):
            weight.grad = grad
        loss = self._sent_to_all(torch.stack([loss.detach() for loss in losses]).sum() if losses else None, ids.device)
        return _Delivered.apply(loss.requires_grad_(), parameters, made)  # type: ignore[no-any-return, no-untyped-call]

    def token_nll(self, ids: Tensor, targets: Tensor, documents: Tensor | None) -> Tensor:
        """Negative log-likelihood of each target, ``(batch, time)``, in every stage."""
        scores = self._through(Run(autocast=_enabled_autocast(ids)), ids, targets, documents)
        return self._sent_to_all(None if scores is None else torch.cat(scores), ids.device, targets.shape)

    def _scheduled(self, run: Run, ids: Tensor, targets: Tensor, documents: Tensor | None) -> list[Tensor]:
        """Forward and backward passes of all micro-batches; the loss of each in the process of the last stage."""
        rows = len(ids) // self.micro_batches
        form = (rows, ids.shape[1], run.autocast)
        if form not in self._schedules:
            self._look_ahead(run, ids[:rows], targets[:rows], None if documents is None else documents[:rows])
            self._schedules[form] = self._schedule(form, ids.device)
        for stage in self.stages:
            stage.run = run
        given: dict[str, Any] = {"ids": ids, "targets": targets}
        given["number"] = torch.arange(self.micro_batches).repeat_interleave(rows)
        if documents is not None:
            given["documents"] = documents
        if self.stages[-1].is_last:
            given["target"] = targets
        losses: list[Tensor] = []
        first = [ids] if self.stages[0].is_first else []
        with autocast_to(ids.device, None):  # the stages' own; backward passes take the precision of the forward ones
            self._schedules[form].step(*first, losses=losses, return_outputs=False, **given)
        return losses

    def _look_ahead(self, run: Run, ids: Tensor, targets: Tensor, documents: Tensor | None) -> None:
        """Learn what travels between the stages, from one micro-batch without gradient and without a trace."""
        devices = [] if ids.device.type == "cpu" else [ids.device]
        with torch.random.fork_rng(devices, device_type=ids.device.type if devices else "cuda"):
            self._through(Run(autocast=run.autocast), ids, targets, documents, micro_batches=1)

    def _schedule(self, form: tuple[int, int, torch.dtype | None], device: torch.device) -> Any:
        rows, time, _ = form
        stages = []
        for stage in self.stages:
            came, goes = (self._meta_forms((number, *form)) for number in (stage.number - 1, stage.number))
            if stage.is_first:
                came = (torch.empty(rows, time, dtype=torch.long, device="meta"),)
            if stage.is_last:
                goes = (torch.empty((), dtype=self._loss_dtype, device="meta", requires_grad=True),)
            stages.append(PipelineStage(stage, stage.number, self.n_stage, device, came, goes, group=self.group))
        made: dict[str, Any] = {"n_microbatches": self.micro_batches, "loss_fn": _itself, "scale_grads": False}
        if self.schedule == "1f1b":
            return Schedule1F1B(stages[0], **made)
        kind = ScheduleInterleaved1F1B if self.schedule == "interleaved" else ScheduleInterleavedZeroBubble
        return kind(stages, **made)  # type: ignore[arg-type]

    def _meta_forms(self, key: Hashable) -> tuple[Tensor, ...]:
        return tuple(form.empty("meta").requires_grad_() for form in self._forms.get(key, []))

    @torch.no_grad()
    def _through(
        self,
        run: Run,
        ids: Tensor,
        targets: Tensor,
        documents: Tensor | None,
        micro_batches: int | None = None,
    ) -> list[Tensor] | None:
        """The score of each micro-batch in the process of the last stage, else None; without gradient."""
        pieces = micro_batches or self.micro_batches
        parts = [x.chunk(pieces) for x in (ids, targets)]
        of_documents = [None] * len(parts[0]) if documents is None else documents.chunk(pieces)
        scores: list[Tensor] | None = None
        sent: list[Any] = []
        for stage in self.stages:
            stage.run = run
            results = []
            for own_ids, own_targets, own_documents in zip(*parts, of_documents, strict=True):
                key = *own_ids.shape, run.autocast
                x, *brought = [own_ids] if stage.is_first else self._receive(stage, key, ids.device)
                result = stage(x, *brought, ids=own_ids, targets=own_targets, documents=own_documents)
                if stage.is_last:
                    results.append(result)
                else:
                    sent += self._send(stage, key, result)
            if stage.is_last:
                scores = results
        for work in sent:
            work.wait()
        return scores

    def _receive(self, stage: ModelStage, key: tuple[Any, ...], device: torch.device) -> list[Tensor]:
        """The stream and what was carried, from the stage before; their forms come along the first time."""
        source, key = dist.get_global_rank(self.group, (stage.number - 1) % self.group.size()), (stage.number - 1, *key)
        if key not in self._forms:
            found: list[Any] = [None]
            dist.recv_object_list(found, source, self.group, device)
            self._forms[key] = found[0]
        forms = self._forms[key]
        stage.brought = [form.key for form in forms[1:]]
        tensors = [form.empty(device) for form in forms]
        for tensor in tensors:
            dist.recv(tensor, source, self.group)
        return tensors

    def _send(self, stage: ModelStage, key: tuple[Any, ...], tensors: Sequence[Tensor]) -> list[Any]:
        """Send the stream and what is carried to the next stage; returns what to wait for."""
        target, key = dist.get_global_rank(self.group, (stage.number + 1) % self.group.size()), (stage.number, *key)
        if key not in self._forms:
            keys = [None, *stage.carried]
            forms = [_Form(name, tuple(x.shape), x.dtype) for name, x in zip(keys, tensors, strict=True)]
            dist.send_object_list([forms], target, self.group, tensors[0].device)
            self._forms[key] = forms
        return [dist.isend(tensor, target, self.group) for tensor in tensors]

    @property
    def _loss_dtype(self) -> torch.dtype:
        return torch.promote_types(next(self.model.parameters()).dtype, torch.float32)

    def _sent_to_all(self, score: Tensor | None, device: torch.device, shape: Sequence[int] = ()) -> Tensor:
        """What the last stage has, in all of them."""
        value = (
            torch.empty(shape, dtype=self._loss_dtype, device=device) if score is None else score.to(self._loss_dtype)
        )
        dist.broadcast(value, group=self.group, group_src=(self.n_stage - 1) % self.group.size())
        return value


def _itself(loss: Tensor, target: Tensor) -> Tensor:
    return loss


def _enabled_autocast(x: Tensor) -> torch.dtype | None:
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None


class _Delivered(torch.autograd.Function):
    """A loss whose backward pass has run; it gives the parameters their gradients once its own gradient is known."""

    @staticmethod
    def forward(
        ctx: Any, loss: Tensor, parameters: Sequence[nn.Parameter], gradients: Sequence[Tensor | None]
    ) -> Tensor:
        ctx.parameters, ctx.gradients = parameters, gradients
        return loss.view_as(loss)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[None, None, None]:
        gradients, ctx.gradients = ctx.gradients, None
        assert gradients is not None, "a pipeline's loss has one backward pass"
        for parameter, gradient in zip(ctx.parameters, gradients, strict=True):
            if gradient is None:
                continue
            gradient.mul_(grad_outputs[0].to(gradient.dtype))
            parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient
        return None, None, None
