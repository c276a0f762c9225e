"""The axes of a mesh, each against one process: cases for :mod:`tests.parallel.world`."""

from collections.abc import Callable, Collection
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor

from lightning_gpt.parallel.context import ContextParallel
from lightning_gpt.parallel.drawing import draw_apart, seed_part
from lightning_gpt.parallel.experts import divide_experts
from lightning_gpt.parallel.pipeline import Pipeline
from lightning_gpt.parallel.stages import layers_of_stages
from lightning_gpt.training.expert_balance import ExpertBalance
from tests.parallel.against_one import (
    Outcome,
    finished,
    model_of,
    of_all_stages,
    one_process,
    optimizer_of,
    steps,
    whole,
)


def world() -> dist.ProcessGroup:
    """All processes."""
    group = dist.group.WORLD
    assert group is not None
    return group


def total(x: Tensor) -> Tensor:
    """The sum over all processes."""
    x = x.clone()
    dist.all_reduce(x)
    return x


def square(gradients: Collection[Tensor | None]) -> Tensor:
    """The sum of the squares of this process's parts."""
    parts = [x.to_local() if isinstance(x, DTensor) else x for x in gradients if x is not None]
    return torch.stack([part.square().sum() for part in parts]).sum()


def averaged(model: nn.Module, divided: Collection[nn.Parameter] = ()) -> None:
    """Average the gradients over all processes, except those of parameters that they divide."""
    for weight in model.parameters():
        if weight.grad is not None and weight not in divided:
            weight.grad = total(weight.grad) / world().size()


def pipeline(name: str, schedule: str = "1f1b", micro: int = 4, documents: bool = False, **more: Any) -> Any:
    """A pipeline of all processes against as many micro-batches in one."""
    model, outcome = model_of(name, **more), Outcome()
    piped = Pipeline(model, world(), schedule, micro)  # type: ignore[arg-type]
    model.divided = piped
    stepper = optimizer_of(model)
    elsewhere, balance = piped.copies.counted_elsewhere(), ExpertBalance(model, lambda x: x)
    for rows in steps(documents):
        stepper.zero_grad()
        loss = model.loss(rows.ids, rows.targets, rows.documents, z_loss=1e-3)
        stepper.zero_grad()  # as Lightning does between the passes
        loss.backward()
        own = square([weight.grad for weight in model.parameters() if weight not in elsewhere])
        balance.end_step()
        outcome.losses.append(float(loss.detach()))
        outcome.norms.append(float(total(own).sqrt()))
        stepper.step()
    finished(outcome, of_all_stages(model, dist.group.WORLD), model, documents)
    return outcome.difference(one_process(name, micro, documents, **more)) if dist.get_rank() == 0 else None


def context(name: str, documents: bool = False, accumulated: int = 1, **more: Any) -> Any:
    """Rows divided over all processes against whole rows in one."""
    model, outcome = model_of(name, **more), Outcome()
    model.divided = ContextParallel(model, world())
    stepper, balance = optimizer_of(model), ExpertBalance(model, total)
    for rows in steps(documents):
        outcome.losses.append(0.0)
        for number in range(accumulated):
            part = rows.part(number, accumulated)
            share = (part.targets >= 0).sum().double() / (rows.targets >= 0).sum()
            loss = model.loss(part.ids, part.targets, part.documents, z_loss=1e-3) * share
            loss.backward()
            outcome.losses[-1] += float(total(loss.detach())) / world().size()
        averaged(model)
        balance.end_step()
        outcome.norms.append(float(torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)))
        stepper.step()
        stepper.zero_grad()
    finished(outcome, model.state_dict(), model, documents)
    return outcome.difference(one_process(name, accumulated, documents, 0.5, **more)) if world().rank() == 0 else None


def experts(documents: bool = False, accumulated: int = 2, **more: Any) -> Any:
    """Experts divided over all processes, with rows of their own, against micro-batches in one process."""
    model, outcome, size = model_of("moe", **more), Outcome(), world().size()
    stacks = divide_experts(model, init_device_mesh("cpu", (size,)))
    divided = {weight for stack in stacks for weight in stack.parameters()}
    stepper, parts, balance = optimizer_of(model, fused=False), accumulated * size, ExpertBalance(model, total)
    for rows in steps(documents):
        outcome.losses.append(0.0)
        for number in range(accumulated):
            part = rows.part(number * size + world().rank(), parts)
            share = (part.targets >= 0).sum().double() * size / (rows.targets >= 0).sum()
            loss = model.loss(part.ids, part.targets, part.documents, z_loss=1e-3) * share
            loss.backward()
            outcome.losses[-1] += float(total(loss.detach())) / size
        averaged(model, divided)
        balance.end_step()
        dense = square([weight.grad for weight in model.parameters() if weight not in divided])
        outcome.norms.append(float((dense + total(square([weight.grad for weight in divided]))).sqrt()))
        stepper.step()
        stepper.zero_grad()
    finished(outcome, {key: whole(value) for key, value in model.state_dict().items()}, model, documents)
    return outcome.difference(one_process("moe", parts, documents, **more)) if world().rank() == 0 else None


def dropout(micro: int = 4, **more: Any) -> Any:
    """A pipeline with dropout against one process that draws from the seeds of the stages."""
    model, whole = model_of("gpt2", dropout=0.2, **more), model_of("gpt2", dropout=0.2, **more)
    piped = Pipeline(model, world(), "1f1b", micro)
    model.divided = piped
    outcome, alone, stages = Outcome(), Outcome(), layers_of_stages(4, piped.n_stage)
    now: dict[int, int] = {}  # the seed that a layer begins with
    for layers in stages:
        whole.layers[layers[0]] = partial(_seeded, whole.layers[layers[0]], now, layers[0])
    steppers = optimizer_of(model), optimizer_of(whole)
    for number, rows in enumerate(steps()):
        torch.manual_seed(number)
        loss = model.loss(rows.ids, rows.targets)
        loss.backward()
        outcome.losses.append(float(loss.detach()))
        torch.manual_seed(number)
        seeds = torch.tensor(draw_apart(piped.n_stage * micro)).view(piped.n_stage, micro)
        alone.losses.append(0.0)
        for part in range(micro):
            own = rows.part(part, micro)
            now |= {layers[0]: int(seeds[stage, part]) for stage, layers in enumerate(stages)}
            seed_part(now.pop(0), torch.device("cpu"))  # the first stage draws for the embedding before its layers
            share = (own.targets >= 0).sum().double() / (rows.targets >= 0).sum()
            loss = whole.loss(own.ids, own.targets) * share
            loss.backward()
            alone.losses[-1] += float(loss.detach())
        for stepper in steppers:
            stepper.step()
            stepper.zero_grad()
    finished(outcome, of_all_stages(model, world()), model, False)
    return outcome.difference(finished(alone, whole.state_dict(), whole, False))


def _seeded(run: Any, seeds: dict[int, int], layer: int, x: Tensor, context: Any) -> Tensor:
    if layer in seeds:
        seed_part(seeds[layer], x.device)
    return run(x, context)  # type: ignore[no-any-return]


def draws() -> list[float]:
    """What processes that share rows, and were seeded alike, draw for their different tokens."""
    context = ContextParallel(model_of("gpt2"), world())
    torch.manual_seed(0)
    context.seed_own(torch.device("cpu"))
    found: list[Any] = [None] * world().size()
    dist.all_gather_object(found, float(torch.rand(())))
    return found


CASES: dict[int, dict[str, Callable[[], Any]]] = {
    2: {
        **{f"pipeline {name}": partial(pipeline, name) for name in ("gpt2", "llama", "moe", "value_residual")},
        "pipeline llama interleaved": partial(pipeline, "llama", "interleaved"),
        "pipeline moe zero_bubble": partial(pipeline, "moe", "zero_bubble"),
        "pipeline value_residual interleaved": partial(pipeline, "value_residual", "interleaved"),
        "pipeline t5 documents": partial(pipeline, "gpt2", position="t5", documents=True),
        "pipeline dropout": dropout,
        "pipeline dropout checkpointing": partial(dropout, checkpointing="block"),
        **{f"context {name}": partial(context, name) for name in ("gpt2", "llama", "value_residual")},
        "context moe accumulated": partial(context, "moe", accumulated=2),
        "context gpt2 documents": partial(context, "gpt2", documents=True, checkpointing="block"),
        "experts": experts,
        "experts documents": partial(experts, documents=True, checkpointing="block", bias=False),
        "pipeline outputs zero_bubble": partial(pipeline, "gpt2", "zero_bubble", residual="attention_residuals"),
        "pipeline groups interleaved checkpointing": partial(
            pipeline,
            "gpt2",
            "interleaved",
            residual={"kind": "attention_residuals", "group": 3},
            checkpointing="block",
        ),
        "pipeline initial checkpointing": partial(pipeline, "gpt2", residual="initial", checkpointing="block"),
    },
    4: {
        "context llama documents": partial(context, "llama", documents=True),
        "experts bias": partial(
            experts,
            ffn={
                "kind": "moe",
                "n_expert": 8,
                "balance": "bias",
                "n_shared": 1,
                "shared_gate": True,
                "router": "sigmoid",
            },
        ),
        "pipeline 4 gpt2": partial(pipeline, "gpt2"),
        "pipeline 4 value_residual zero_bubble": partial(pipeline, "value_residual", "zero_bubble"),
    },
}
DRAWN = "what is drawn"
CASES[2][DRAWN] = draws
