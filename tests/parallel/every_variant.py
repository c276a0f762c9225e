"""Two processes hold every variant of a model in a layout and compare it with the whole: a program for the tests.

    python -m tests.parallel.every_variant OUT

It writes to OUT, as JSON, for each mode and each of ``tests.models.variants.CONFIGS``: the line that refuses it, or the
largest differences of loss, gradients, ``token_nll`` and logits, each relative to the largest value.
"""

import datetime
import json
import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor
from torch.multiprocessing.spawn import start_processes

from benchmarks.layouts import free_port
from lightning_gpt.errors import CallError
from lightning_gpt.models import GPT
from lightning_gpt.parallel.layout import Layout
from lightning_gpt.parallel.mesh import Mesh
from lightning_gpt.parallel.strategy import lay_out
from lightning_gpt.parallel.suited import require_suited
from lightning_gpt.parallel.whole import gathered_state
from tests.models.helpers import random_ids, randomise
from tests.models.variants import CONFIGS, config, name_of

MODES = {
    "tensor": Layout(data=1, tensor=2),
    "sequence": Layout(data=1, tensor=2, sequence=True),
    "shard": Layout(data=1, shard=2),
}


def whole(changes: dict[str, object]) -> GPT:
    """A model of this variant, every weight random, the same in every process."""
    return randomise(GPT(config(changes, vocab_size=19, checkpointing="block"))).double().train()


def relative(ours: Tensor, theirs: Tensor) -> float:
    """The largest difference, relative to the largest value."""
    return float((ours - theirs).abs().max() / theirs.abs().max().clamp(min=1e-6))


def compared(changes: dict[str, object], mesh: Mesh) -> dict[str, float]:
    """The differences between the model in the layout of ``mesh`` and the whole one."""
    one, model = whole(changes), whole(changes)
    ids, targets = random_ids(19, 2, 24), random_ids(19, 2, 24, seed=2)
    documents = (ids % 5 == 0).long().cumsum(dim=1)
    pieces = lay_out(model, mesh)
    found = {}
    losses = []
    for each in (one, model):
        torch.manual_seed(3)  # layer drop
        loss = each.loss(ids, targets, documents, label_smoothing=0.1, z_loss=1e-2)
        loss.backward()
        losses.append(loss.detach())
    found["loss"] = relative(losses[1], losses[0])
    gradients = gathered_state(
        ((name, each.grad) for name, each in model.named_parameters() if each.grad is not None), pieces, keep=True
    )
    expected = {name: each.grad for name, each in one.named_parameters() if each.grad is not None}
    assert gradients.keys() == expected.keys(), (gradients.keys(), expected.keys())
    largest = max(float(each.abs().max()) for each in expected.values())
    found["gradients"] = max(float((gradients[name] - each).abs().max()) / largest for name, each in expected.items())
    with torch.no_grad():
        one.eval(), model.eval()
        found["token_nll"] = relative(model.token_nll(ids, targets, documents), one.token_nll(ids, targets, documents))
        found["logits"] = relative(model(ids, documents), one(ids, documents))
    return found


def _process(rank: int, port: int, out: str) -> None:
    address = f"tcp://127.0.0.1:{port}"
    dist.init_process_group("gloo", address, datetime.timedelta(seconds=60), rank=rank, world_size=2)
    results: dict[str, dict[str, object]] = {}
    for mode, layout in MODES.items():
        mesh, results[mode] = Mesh(layout, "cpu"), {}
        for changes in CONFIGS:
            if "memory" in changes and changes["memory"] != "none":
                continue
            known = {key: value for key, value in changes.items() if key != "memory"}
            try:
                require_suited(whole(known), layout)
                found: object = compared(known, mesh)
            except CallError as error:
                found = str(error)
            results[mode][name_of(changes)] = found
    if rank == 0:
        Path(out).write_text(json.dumps(results))
    os._exit(0)


if __name__ == "__main__":
    start_processes(_process, (free_port(), sys.argv[1]), nprocs=2, start_method="fork")  # type: ignore[no-untyped-call]
