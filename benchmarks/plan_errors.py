"""How far the plan's memory is from the measured peak of a process: ``python -m benchmarks.plan_errors``.

Each cell of the grid trains a few steps in a process of its own, in the order of Lightning's loop, and reports the peak
of its resident set above what it used before the model was made. The C library is told to return what is freed: by
default glibc keeps freed arrays of up to 32 MB, which in models as small as these adds up to two thirds of the peak,
depending on the order of a few allocations. Linux only, like every peak of a process here.
"""

import argparse
import itertools
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass

import torch

from benchmarks.memory import missing, peak_bytes
from lightning_gpt.models import GPT, GPTConfig
from lightning_gpt.parallel.layout import Layout
from lightning_gpt.planning.memory import rank_memory
from lightning_gpt.planning.training import Training
from lightning_gpt.training.optim import adamw

_STEPS = 3
RETURNS_MEMORY = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
"""Environment in which glibc keeps no freed array of 64 KB or more."""


@dataclass(frozen=True)
class Cell:
    """One training of the grid.

    Args:
        n_layer: Depth.
        dim: Width.
        checkpointing: What is recomputed.
        kind: ``gpt2``, or ``llama``: grouped attention, SwiGLU, rotary positions, RMSNorm.
        precision: The Trainer's.
        rows: Rows of a micro-batch.
        time: Tokens of a row.
        accumulate: Micro-batches of an optimizer step.
        vocab_size: Number of token ids.
    """

    n_layer: int
    dim: int
    checkpointing: str
    kind: str = "gpt2"
    precision: str = "32-true"
    rows: int = 8
    time: int = 256
    accumulate: int = 1
    vocab_size: int = 8192

    def config(self) -> GPTConfig:
        """The model's config."""
        llama = {"norm": "rms", "position": "rotary", "ffn": "swiglu", "bias": False, "tie_embeddings": False}
        llama["attention"] = {"kind": "grouped", "n_kv_head": 2}
        return GPTConfig(
            n_layer=self.n_layer,
            n_head=4,
            dim=self.dim,
            block_size=self.time,
            vocab_size=self.vocab_size,
            checkpointing=self.checkpointing,  # type: ignore[arg-type]
            **(llama if self.kind == "llama" else {}),  # type: ignore[arg-type]
        )


def planned(cell: Cell) -> float:
    """The peak that the plan gives, in bytes."""
    with torch.device("meta"):
        model = GPT(cell.config())
    training = Training(
        model=model,
        precision=cell.precision,
        device="cpu",
        rows=cell.rows,
        time=cell.time,
        accumulate=cell.accumulate,
    )
    return rank_memory(training, Layout(data=1)).total


def measured(cell: Cell) -> int:
    """The peak of a process that trains the cell, in bytes; run it in a fresh process."""
    _train(Cell(2, 64, "none", cell.kind, cell.precision, 2, 64))  # loads the libraries and starts the threads
    return peak_bytes(lambda: _train(cell), "cpu")


def _train(cell: Cell) -> None:
    model = GPT(cell.config()).train()
    optimizer = adamw(model)
    ids = torch.randint(cell.vocab_size, (cell.rows, cell.time + 1))
    is_mixed = cell.precision.endswith("-mixed")
    for _ in range(_STEPS):
        for number in range(cell.accumulate):
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=is_mixed):
                loss = model.loss(ids[:, :-1], ids[:, 1:])
            if number == 0:  # where Lightning does it: after the forward pass
                optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()


def in_fresh_process(cell: Cell) -> int:
    """:func:`measured` in a process of its own."""
    call = [sys.executable, "-m", "benchmarks.plan_errors", "--cell", json.dumps(asdict(cell))]
    environment = {**os.environ, **RETURNS_MEMORY}
    return int(subprocess.run(call, check=True, capture_output=True, text=True, env=environment).stdout)


def grid() -> Iterator[Cell]:
    """Depth, width and checkpointing for both kinds of model; accumulation and bf16 for some."""
    for kind in ("gpt2", "llama"):
        for n_layer, dim, checkpointing in itertools.product(
            (2, 4, 8), (128, 256, 512), ("none", "block", "attention")
        ):
            yield Cell(n_layer, dim, checkpointing, kind)
    for checkpointing in ("none", "block", "attention"):
        yield Cell(4, 256, checkpointing, accumulate=3)
        yield Cell(4, 256, checkpointing, precision="bf16-mixed")
        yield Cell(4, 256, checkpointing, vocab_size=50257)


def main() -> None:
    """Print planned and measured peaks, and the largest errors."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cell", help="measure one cell in this process, and print bytes")
    given = parser.parse_args().cell
    if given is not None:
        print(measured(Cell(**json.loads(given))))
        return
    reason = missing("cpu")
    if reason is not None:
        raise SystemExit(reason)
    errors = []
    print("kind   precision   layers  width  checkpointing  accumulate  vocabulary  planned MB  measured MB  error")
    for cell in grid():
        plan, real = planned(cell), in_fresh_process(cell)
        errors.append(plan / real - 1)
        print(
            f"{cell.kind:<6} {cell.precision:<11} {cell.n_layer:>6} {cell.dim:>6}  {cell.checkpointing:<13}  "
            f"{cell.accumulate:>10}  {cell.vocab_size:>10,}  {plan / 1e6:>10,.1f}  {real / 1e6:>11,.1f}  "
            f"{errors[-1]:+.1%}",
            flush=True,
        )
    print(f"{len(errors)} cells; errors from {min(errors):+.1%} to {max(errors):+.1%}")


if __name__ == "__main__":
    main()
