"""Two processes count the bytes that a training step sends in several layouts: a program for the tests.

    python -m tests.planning.counted_bytes OUT

It writes to OUT, as JSON, what each process sends in each of :data:`LAYOUTS`: counted at torch's own operators of
communication, a gather or a reduce-scatter as one way around a ring, an all-reduce as two.
"""

import datetime
import json
import os
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.multiprocessing.spawn import start_processes
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks.layout_training import free_port
from lightning_gpt.models import GPT, GPTConfig
from lightning_gpt.parallel.layout import Layout
from lightning_gpt.parallel.mesh import Mesh
from lightning_gpt.parallel.strategy import lay_out

ROWS, TIME, VOCABULARY, MICRO_BATCHES = 2, 64, 320, 2
LAYOUTS: dict[str, tuple[Layout, str]] = {
    "shard": (Layout(data=1, shard=2), "none"),
    "shard, kept": (Layout(data=1, shard=2, reshard=False), "none"),
    "shard, recomputed": (Layout(data=1, shard=2), "block"),
    "data": (Layout(data=2), "none"),
    "tensor": (Layout(data=1, tensor=2), "none"),
    "tensor, recomputed": (Layout(data=1, tensor=2), "block"),
    "sequence": (Layout(data=1, tensor=2, sequence=True), "none"),
    "sequence, recomputed": (Layout(data=1, tensor=2, sequence=True), "block"),
    "sequence, attention recomputed": (Layout(data=1, tensor=2, sequence=True), "attention"),
}
"""The layouts, each with a checkpointing."""

_GATHERS = ("allgather_", "_allgather_base_", "allgather_into_tensor_coalesced_")
_SCATTERS = ("reduce_scatter_", "_reduce_scatter_base_", "reduce_scatter_tensor_coalesced_")


def gpt(checkpointing: str) -> GPT:
    """A model with key heads of its own."""
    return GPT(
        GPTConfig(
            n_layer=3,
            n_head=4,
            dim=64,
            block_size=TIME,
            vocab_size=VOCABULARY,
            attention={"kind": "grouped", "n_kv_head": 2},
            ffn="swiglu",
            norm="rms",
            position="rotary",
            bias=False,
            checkpointing=checkpointing,  # type: ignore[arg-type]
        )
    )


class Sent(TorchDispatchMode):
    """Bytes that this process sends, as rings send them."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "c10d":
            name = func._schema.name.partition("::")[2]
            size = next(dist.ProcessGroup.unbox(each).size() for each in args if isinstance(each, torch.ScriptObject))
            # the gathered array is the first argument, the scattered one the second
            ways = {**dict.fromkeys(_GATHERS, args[:1]), **dict.fromkeys(_SCATTERS, args[1:2])}
            ways["allreduce_"] = args[:1] * 2
            for tensor in tree_leaves(ways.get(name, ())):
                if isinstance(tensor, Tensor):
                    self.bytes[name] += tensor.nbytes * (size - 1) / size
        return func(*args, **(kwargs or {}))


def step(layout: Layout, checkpointing: str) -> Counter[str]:
    """Bytes that this process sends in an optimizer step of :data:`MICRO_BATCHES`, by operator."""
    model = gpt(checkpointing).train()
    lay_out(model, Mesh(layout, "cpu"))
    ids = torch.randint(VOCABULARY, (ROWS, TIME + 1))
    with Sent() as sent:
        for _ in range(MICRO_BATCHES):
            model.loss(ids[:, :-1], ids[:, 1:]).backward()
    return sent.bytes


def process(rank: int, port: int, out: str) -> None:
    """Count in one of the two processes."""
    os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
    dist.init_process_group("gloo", rank=rank, world_size=2, timeout=datetime.timedelta(seconds=120))
    torch.set_num_threads(1)
    torch.manual_seed(0)
    found = {name: step(*each) for name, each in LAYOUTS.items()}
    if rank == 0:
        Path(out).write_text(json.dumps(found))
    dist.destroy_process_group()


if __name__ == "__main__":
    start_processes(process, (free_port(), sys.argv[1]), nprocs=2, start_method="fork")
