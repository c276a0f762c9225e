"""Two processes try what the parallel layouts are made of: a program for the tests.

    python -m tests.parallel.two_processes OUT

It writes to OUT, as JSON:

- ``variants``: for each mode and each of ``tests.models.variants.CONFIGS`` tried in it, the line that refuses it or the
  largest differences of loss, gradients, ``token_nll`` and logits from the whole model, relative to the largest value.
- ``collectives``: for each, the largest difference of value and gradient from what one process computes.
- ``drawing``: for each mode, whether the generators' states are the same in both processes at a part of a pass with
  dropout, and the largest difference between their gradients of what both hold.
- ``norms``: the norm of a mixture of tensors, and the norm after clipping to 1, beside what one process computes.
"""

import datetime
import functools
import json
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import Shard, distribute_tensor
from torch.multiprocessing.spawn import start_processes

from benchmarks.layout_training import free_port
from lightning_gpt.errors import CallError
from lightning_gpt.models import GPT
from lightning_gpt.parallel import collectives
from lightning_gpt.parallel.laying_out import lay_out
from lightning_gpt.parallel.layout import Layout
from lightning_gpt.parallel.mesh import Mesh
from lightning_gpt.parallel.norms import clip_norm, total_norm
from lightning_gpt.parallel.suited import require_suited
from lightning_gpt.parallel.whole import gathered_state
from tests.models.helpers import random_ids, randomise
from tests.models.variants import CONFIGS, config, name_of

# sequence parallel enters every part of tensor parallel but what the ends of the model do without it
MODES = {
    "sequence": (Layout(data=1, tensor=2, sequence=True), 1),
    "tensor": (Layout(data=1, tensor=2), 5),
    "shard": (Layout(data=1, shard=2), 5),
    "context": (Layout(data=1, context=2), 3),
}
"""The layouts, and of how many variants one is tried."""


@functools.cache
def mesh_of(layout: Layout) -> Mesh:
    """The mesh of a layout, made once: each has groups of processes, whose threads wait busily."""
    return Mesh(layout, "cpu")


def whole(changes: dict[str, object]) -> GPT:
    """A model of this variant, every weight random, the same in every process."""
    return randomise(GPT(config(changes, vocab_size=19, checkpointing="block"))).double().train()


def relative(ours: Tensor, theirs: Tensor) -> float:
    """The largest difference, relative to the largest value."""
    return float((ours - theirs).abs().max() / theirs.abs().max().clamp(min=1e-6))


@dataclass(frozen=True)
class Figures:
    """What a model gives: the loss, its gradients by name, and, in evaluation, ``token_nll`` and logits."""

    loss: Tensor
    gradients: dict[str, Tensor]
    token_nll: Tensor
    logits: Tensor


def figures(model: GPT, gathered: Callable[[list[tuple[str, Tensor]]], dict[str, Tensor]]) -> Figures:
    """The figures of a model for the rows that every model gets."""
    ids, targets = random_ids(19, 2, 24), random_ids(19, 2, 24, seed=2)
    documents = (ids % 5 == 0).long().cumsum(dim=1)
    torch.manual_seed(3)  # layer drop
    loss = model.loss(ids, targets, documents, label_smoothing=0.1, z_loss=1e-2)
    loss.backward()
    found = [(name, weight.grad) for name, weight in model.named_parameters() if weight.grad is not None]
    with torch.no_grad():
        model.eval()
        nll, logits = model.token_nll(ids, targets, documents), model(ids, documents)
    return Figures(loss.detach().clone(), gathered(found), nll, logits)


def compared(ours: Figures, theirs: Figures) -> dict[str, float]:
    """The differences between the figures of a model in a layout and those of the whole one."""
    loss = ours.loss.clone()
    dist.all_reduce(loss)  # where rows are divided, the loss is the mean of the processes' shares
    assert ours.gradients.keys() == theirs.gradients.keys()
    largest = max(float(each.abs().max()) for each in theirs.gradients.values())
    differences = [float((ours.gradients[name] - each).abs().max()) for name, each in theirs.gradients.items()]
    return {
        "loss": relative(loss / dist.get_world_size(), theirs.loss),
        "gradients": max(differences) / largest,
        "token_nll": relative(ours.token_nll, theirs.token_nll),
        "logits": relative(ours.logits, theirs.logits),
    }


def variants() -> dict[str, dict[str, object]]:
    """Every variant in the modes in which it is tried."""
    results: dict[str, dict[str, object]] = {mode: {} for mode in MODES}
    known = [changes for changes in CONFIGS if changes.get("memory", "none") == "none"]
    for number, changes in enumerate(known):
        plain = {key: value for key, value in changes.items() if key != "memory"}
        theirs = None
        for mode, (layout, every) in MODES.items():
            if number % every:
                continue
            model = whole(plain)
            try:
                require_suited(model, layout)
            except CallError as error:
                results[mode][name_of(changes)] = str(error)
                continue
            theirs = theirs or figures(whole(plain), dict)
            pieces = lay_out(model, mesh_of(layout)).pieces
            ours = figures(model, functools.partial(gathered_state, pieces=pieces, keep=True))
            results[mode][name_of(changes)] = compared(ours, theirs)
    return results


def collective_pairs(rank: int) -> dict[str, float]:
    """Each collective and its gradient, as this process computes them, against both processes' inputs together."""
    group = dist.group.WORLD
    assert group is not None
    inputs = torch.randn(2, 4, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    weights = torch.randn(2, 8, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    both = torch.cat([inputs[0], inputs[1]])
    same = inputs[0]
    # name: how to call it, this process's input, the value, and the gradient where the output's is `weights`
    cases: dict[str, tuple[Callable[[Tensor], Tensor], Tensor, Tensor, Callable[[Tensor], Tensor]]] = {
        "copied": (lambda x: collectives.copied(x, group), same, same, lambda g: g.sum(0)),
        "summed": (lambda x: collectives.summed(x, group), inputs[rank], inputs.sum(0), lambda g: g[rank]),
        "gathered": (
            lambda x: collectives.gathered(x, group, 0),
            *(inputs[rank], both, lambda g: g.sum(0).chunk(2)[rank]),
        ),
        "scattered": (
            lambda x: collectives.scattered(x, group, 1),
            *(inputs[rank], inputs.sum(0).chunk(2, 1)[rank], lambda g: torch.cat([g[0], g[1]], 1)),
        ),
        "split": (
            lambda x: collectives.split(x, group, 1),
            *(same, same.chunk(2, 1)[rank], lambda g: torch.cat([g[0], g[1]], 1)),
        ),
        "joined": (lambda x: collectives.joined(x, group, 0), inputs[rank], both, lambda g: g[rank].chunk(2)[rank]),
    }
    found = {}
    for name, (call, given, value, gradient) in cases.items():
        x = given.clone().requires_grad_()
        y = call(x)
        of_output = weights[:, : y.shape[0], : y.shape[1]]
        y.backward(of_output[rank].contiguous())
        assert x.grad is not None
        found[name] = max(float((y - value).abs().max()), float((x.grad - gradient(of_output)).abs().max()))
    return found


def drawing() -> dict[str, dict[str, float]]:
    """Dropout in the layouts of the tensor axis, where some of a pass is computed in both processes."""
    found = {}
    for mode, layout in (("tensor", Layout(data=1, tensor=2)), ("sequence", Layout(data=1, tensor=2, sequence=True))):
        torch.manual_seed(0)
        model = GPT(config({"dropout": 0.5}, checkpointing="block")).double().train()
        lay_out(model, mesh_of(layout))
        states: dict[str, Tensor] = {}
        block = model.block_views()[0]
        at = {
            "embedding": model.dropout,
            "attention": block.mixer.w_o,
            "block": block.parts[0].dropout,
            "end": model.head,
        }
        for name, part in at.items():
            keep = functools.partial(_keep_state, states, name)
            part.register_forward_pre_hook(keep)
        torch.manual_seed(1)
        model.loss(random_ids(17, 2, 24), random_ids(17, 2, 24)).backward()
        states["end"] = torch.default_generator.get_state()
        found[mode] = {name: float(_is_same(state)) for name, state in states.items()}
        found[mode]["gradients"] = max(
            float((each - other).abs().max())
            for weight in model.parameters()
            if weight.grad is not None and all(place.is_replicate() for place in weight.grad.placements[-1:])
            for each, other in [_both(weight.grad.to_local())]
        )
    return found


def _keep_state(states: dict[str, Tensor], name: str, *_: object) -> None:
    states.setdefault(name, torch.default_generator.get_state())


def _both(tensor: Tensor) -> list[Tensor]:
    parts = [torch.empty_like(tensor) for _ in range(2)]
    dist.all_gather(parts, tensor.contiguous())
    return parts


def _is_same(state: Tensor) -> bool:
    return torch.equal(*_both(state))


def norms(rank: int) -> dict[str, list[float]]:
    """A plain gradient, one divided over the tensor axis and one of which only the first process has a part."""
    mesh = mesh_of(Layout(data=1, tensor=2)).axis("tensor")
    whole_ones = [torch.randn(n, 3, generator=torch.Generator().manual_seed(n), dtype=torch.float64) for n in (2, 5, 1)]
    spread = [whole_ones[0].clone(), *(distribute_tensor(each.clone(), mesh, [Shard(0)]) for each in whole_ones[1:])]
    expected = [nn.Parameter(torch.zeros_like(each)) for each in whole_ones]
    for parameter, gradient in zip(expected, whole_ones, strict=True):
        parameter.grad = gradient
    norm, theirs = total_norm(spread), torch.nn.utils.clip_grad_norm_(expected, 1.0)
    clip_norm(spread, 1.0, norm)
    pairs = zip(spread, expected, strict=True)
    off = max(relative(getattr(own, "full_tensor", lambda own=own: own)(), other.grad) for own, other in pairs)
    return {"norm": [float(norm), float(theirs)], "clipped": [off, 0.0], "none": [float(total_norm([])), 0.0]}


def _process(rank: int, port: int, out: str) -> None:
    address = f"tcp://127.0.0.1:{port}"
    dist.init_process_group("gloo", address, datetime.timedelta(seconds=60), rank=rank, world_size=2)
    results = {
        "collectives": collective_pairs(rank),
        "norms": norms(rank),
        "drawing": drawing(),
        "variants": variants(),
    }
    if rank == 1:  # the one that has less
        Path(out).write_text(json.dumps(results))
    dist.barrier()
    os._exit(0)  # what gloo's threads do while the interpreter takes itself apart is not what is tested


if __name__ == "__main__":
    start_processes(_process, (free_port(), sys.argv[1]), nprocs=2, start_method="fork")  # type: ignore[no-untyped-call]
