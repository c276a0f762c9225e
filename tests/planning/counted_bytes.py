"""Two processes, then four, count the bytes that a training step sends in several layouts: a program for the tests.

    python -m tests.planning.counted_bytes FOLDER

It writes to FOLDER, as JSON, what each process sends in each of :data:`CASES` and :data:`BOTH`: counted at torch's own
operators of communication, a gather or a reduce-scatter as one way around a ring, an all-reduce as two, and what goes
to a single process as it is.
"""

import datetime
import json
import os
import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
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


@dataclass(frozen=True)
class Case:
    """A training step.

    Args:
        layout: The layout.
        options: The model's config, where it is not that of :func:`gpt`.
        precision: The Trainer's.
        times: How often a step has as many batches as the others.
    """

    layout: Layout
    options: Mapping[str, Any] = field(default_factory=dict)
    precision: str = "32-true"
    times: int = 1

    @property
    def rows(self) -> int:
        """Rows of a batch; a pipeline divides one into micro-batches."""
        return ROWS * (1 if self.layout.pipeline == 1 else MICRO_BATCHES)

    @property
    def batches(self) -> int:
        """Batches of a step in each process."""
        return self.times * MICRO_BATCHES * ROWS // self.rows


TENSOR, SEQUENCE = Layout(data=1, tensor=2), Layout(data=1, tensor=2, sequence=True)
PIPELINE, CONTEXT, EXPERT = Layout(data=1, pipeline=2), Layout(data=1, context=2), Layout(data=1, expert=2)
BLOCK, ATTENTION = {"checkpointing": "block"}, {"checkpointing": "attention"}
MIXTURE = {"ffn": {"kind": "moe", "n_expert": 4, "top_k": 2}}
MIXED = "bf16-mixed"
CASES: dict[str, Case] = {
    "shard": Case(Layout(data=1, shard=2)),
    "shard, kept": Case(Layout(data=1, shard=2, reshard=False)),
    "shard, recomputed": Case(Layout(data=1, shard=2), BLOCK),
    "data": Case(Layout(data=2)),
    "tensor": Case(TENSOR),
    "tensor, recomputed": Case(TENSOR, BLOCK),
    "sequence": Case(SEQUENCE),
    "sequence, recomputed": Case(SEQUENCE, BLOCK),
    "sequence, attention recomputed": Case(SEQUENCE, ATTENTION),
    "tensor, mixed": Case(TENSOR, precision=MIXED),
    "tensor, mixture": Case(TENSOR, MIXTURE),
    "tensor, mixture mixed": Case(TENSOR, MIXTURE, MIXED),
    "tensor, mixture recomputed": Case(TENSOR, {"ffn": {**MIXTURE["ffn"], "n_shared": 1}, **BLOCK}),
    "sequence, mixture": Case(SEQUENCE, MIXTURE),
    "sequence, mixture recomputed": Case(SEQUENCE, {**MIXTURE, **BLOCK}),
    "sequence, mixed": Case(SEQUENCE, precision=MIXED),
    "pipeline": Case(PIPELINE),
    "pipeline, accumulated": Case(PIPELINE, times=2),
    "pipeline, untied": Case(PIPELINE, {"tie_embeddings": False}),
    "pipeline, interleaved": Case(replace(PIPELINE, schedule="interleaved"), {"n_layer": 5}),
    "pipeline, zero bubble": Case(replace(PIPELINE, schedule="zero_bubble")),
    "pipeline, values carried": Case(PIPELINE, {"attention": "value_residual"}),
    "pipeline, stream carried": Case(PIPELINE, {"residual": "initial"}),
    "pipeline, copies of the stream": Case(PIPELINE, {"residual": "hyper_connections"}),
    "pipeline, outputs carried": Case(PIPELINE, {"residual": "attention_residuals"}),
    "pipeline, sums carried": Case(PIPELINE, {"residual": {"kind": "attention_residuals", "group": 2}, "n_layer": 5}),
    "pipeline, mixed": Case(PIPELINE, precision=MIXED),
    "context": Case(CONTEXT),
    "context, recomputed": Case(CONTEXT, BLOCK),
    "context, attention recomputed": Case(CONTEXT, ATTENTION),
    "context, mixed": Case(CONTEXT, precision=MIXED),
    "expert": Case(EXPERT, MIXTURE),
    "expert, recomputed": Case(EXPERT, {**MIXTURE, **BLOCK}),
    "expert, attention recomputed": Case(EXPERT, {**MIXTURE, **ATTENTION}),
    "expert, mixed": Case(EXPERT, MIXTURE, MIXED),
}
"""The steps that are counted."""

BOTH = {
    "pipeline and shard": Case(Layout(data=1, pipeline=2, shard=2)),
    "pipeline and shard, kept": Case(Layout(data=1, pipeline=2, shard=2, reshard=False)),
    "pipeline and shard, accumulated": Case(Layout(data=1, pipeline=2, shard=2, micro_batches=2), times=2),
    "pipeline and shard, interleaved": Case(
        Layout(data=1, pipeline=2, shard=2, schedule="interleaved"), {"n_layer": 5, "tie_embeddings": False}
    ),
    "pipeline and data": Case(Layout(data=2, pipeline=2)),
}
"""The steps that four processes take."""

_GATHERS = ("allgather_", "_allgather_base_", "allgather_into_tensor_coalesced_")
_SCATTERS = ("reduce_scatter_", "_reduce_scatter_base_", "reduce_scatter_tensor_coalesced_")
_NOTHING = ("recv_", "barrier")


def gpt(options: Mapping[str, Any]) -> GPT:
    """A model with key heads of its own."""
    plain = {
        "n_layer": 3,
        "n_head": 4,
        "dim": 64,
        "block_size": TIME,
        "vocab_size": VOCABULARY,
        "attention": {"kind": "grouped", "n_kv_head": 2},
        "ffn": "swiglu",
        "norm": "rms",
        "position": "rotary",
        "bias": False,
    }
    return GPT(GPTConfig(**{**plain, **options}))  # type: ignore[arg-type]


class Sent(TorchDispatchMode):
    """Bytes that this process sends to others: collectives as rings send them, all else as it is."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "c10d":
            name = func._schema.name.partition("::")[2]
            self.bytes[name] += self._sent(name, args)
        return func(*args, **(kwargs or {}))

    def _sent(self, name: str, args: Any) -> float:
        group = next(dist.ProcessGroup.unbox(each) for each in args if isinstance(each, torch.ScriptObject))
        around = (group.size() - 1) / group.size()
        if name in _GATHERS:  # the gathered array is the first argument
            return _bytes_of(args[0]) * around
        if name in _SCATTERS:  # the scattered array is the second argument
            return _bytes_of(args[1]) * around
        if name == "allreduce_":
            return _bytes_of(args[0]) * around * 2
        if name in ("send", "broadcast_"):
            return _bytes_of(args[0])
        if name == "alltoall_base_":
            rows, out = args[1], args[4]  # the latter for each process; empty for equal parts
            parts = rows.split(list(out)) if out else rows.chunk(group.size())
            return sum(_bytes_of(part) for rank, part in enumerate(parts) if rank != group.rank())
        assert name in _NOTHING, f"what {name} sends is not counted"
        return 0.0


def _bytes_of(tensors: Any) -> float:
    return float(sum(each.nbytes for each in tree_leaves(tensors) if isinstance(each, Tensor)))


def step(case: Case) -> Counter[str]:
    """Bytes that this process sends in an optimizer step, by operator."""
    model = gpt(case.options).train()
    mesh = Mesh(case.layout, "cpu")
    lay_out(model, mesh)
    rows = torch.Generator().manual_seed(mesh.data_rank)
    if case.layout.pipeline > 1:
        batch(model, case, rows)  # before its first step a pipeline looks ahead
    with Sent() as sent:
        for _ in range(case.batches):
            batch(model, case, rows)
    return sent.bytes


def batch(model: GPT, case: Case, rows: torch.Generator) -> None:
    """A forward and a backward pass."""
    ids = torch.randint(VOCABULARY, (case.rows, TIME + 1), generator=rows)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=case.precision == MIXED):
        loss = model.loss(ids[:, :-1], ids[:, 1:])
    loss.backward()


def process(rank: int, size: int, port: int, cases: Mapping[str, Case], out: str) -> None:
    """Count in one of ``size`` processes."""
    os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
    dist.init_process_group("gloo", rank=rank, world_size=size, timeout=datetime.timedelta(seconds=120))
    torch.set_num_threads(1)
    torch.manual_seed(0)
    found = {name: step(case) for name, case in cases.items()}
    of_all: list[Any] = [None] * size
    dist.all_gather_object(of_all, found)
    if rank == 0:
        Path(out).write_text(json.dumps({name: [each[name] for each in of_all] for name in cases}))
    dist.destroy_process_group()


if __name__ == "__main__":
    for size, counted in ((2, CASES), (4, BOTH)):
        place = f"{sys.argv[1]}/{size}.json"
        start_processes(process, (size, free_port(), counted, place), nprocs=size, start_method="fork")
