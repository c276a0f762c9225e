"""The axes of a mesh, each against one process: cases for :mod:`tests.parallel.world`."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.distributed as dist

from lightning_gpt.parallel.pipeline import Pipeline
from tests.parallel.against_one import Outcome, finished, model_of, of_all_stages, one_process, optimizer_of, steps


def pipeline(name: str, schedule: str = "1f1b", micro: int = 4, documents: bool = False, **more: Any) -> Any:
    """A pipeline of all processes against as many micro-batches in one."""
    model, outcome = model_of(name, **more), Outcome()
    piped = Pipeline(model, dist.group.WORLD, schedule, micro)  # type: ignore[arg-type]
    model.divided = piped
    stepper = optimizer_of(model)
    elsewhere = piped.copies.counted_elsewhere()
    for rows in steps(documents):
        stepper.zero_grad()
        loss = model.loss(rows.ids, rows.targets, rows.documents, z_loss=1e-3)
        stepper.zero_grad()  # as Lightning does between the passes
        loss.backward()
        own = [weight.grad for weight in model.parameters() if weight.grad is not None and weight not in elsewhere]
        square = torch.stack([grad.square().sum() for grad in own]).sum()
        dist.all_reduce(square)
        outcome.losses.append(float(loss.detach()))
        outcome.norms.append(float(square.sqrt()))
        stepper.step()
    finished(outcome, of_all_stages(model, dist.group.WORLD), model, documents)
    return outcome.difference(one_process(name, micro, documents, **more)) if dist.get_rank() == 0 else None


CASES: dict[int, dict[str, Callable[[], Any]]] = {
    2: {
        **{f"pipeline {name}": partial(pipeline, name) for name in ("gpt2", "llama", "moe", "value_residual")},
        "pipeline llama interleaved": partial(pipeline, "llama", "interleaved"),
        "pipeline moe zero_bubble": partial(pipeline, "moe", "zero_bubble"),
        "pipeline value_residual interleaved": partial(pipeline, "value_residual", "interleaved"),
        "pipeline t5 documents": partial(pipeline, "gpt2", position="t5", documents=True),
        "pipeline initial checkpointing": partial(pipeline, "gpt2", residual="initial", checkpointing="block"),
    },
    4: {
        "pipeline 4 gpt2": partial(pipeline, "gpt2"),
        "pipeline 4 value_residual zero_bubble": partial(pipeline, "value_residual", "zero_bubble"),
    },
}
