"""Every layout of many devices held against one process: losses, weights and validation, and how far they differ.

    python -m benchmarks.layouts [--short] [--devices 2 4] [--only WORDS ...]

Real processes meet over gloo and train small models under Lightning as ``lightning-gpt fit`` does, with the rows of an
optimizer step held. One process trains each model alone for reference. Each line names a layout, a model and a proof,
with the largest differences of the losses, the weights and the validation loss. The last column says whether all are
within the proof's bound: 1e-10 in float64, where only the order of sums differs; in fp32 AdamW amplifies that rounding
to 1e-5 within ten steps, which would hide a mistake.

The exit status is 1 if one is not.
"""

import argparse
import datetime
import itertools
import logging
import math
import os
import socket
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import lightning as L
import torch
import torch.distributed as dist
from torch import Tensor
from torch.multiprocessing.spawn import start_processes
from torch.utils.data import DataLoader

from lightning_gpt.data.share import data_place
from lightning_gpt.models.head import IGNORED
from lightning_gpt.parallel.layout import Layout
from lightning_gpt.parallel.strategy import MeshStrategy
from lightning_gpt.training.module import GPTModule
from lightning_gpt.training.mup import MuP
from lightning_gpt.training.optim import Optimization

_QUIET = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")
ROWS, TIME, VOCABULARY = 8, 16, 61
SIZES: dict[str, Any] = {"n_layer": 2, "n_head": 4, "dim": 32, "block_size": TIME, "vocab_size": VOCABULARY}

MODELS: dict[str, dict[str, Any]] = {
    "gpt2": {},
    "llama": {
        "norm": "rms",
        "position": "rotary",
        "ffn": "swiglu",
        "bias": False,
        "tie_embeddings": False,
        "attention": {"kind": "grouped", "n_kv_head": 2},
    },
    # the balancing loss depends on which tokens are seen together, so it differs by design; the bias does not
    "mixture": {"ffn": {"kind": "moe", "n_expert": 4, "top_k": 2, "n_shared": 1, "balance": "bias", "z_loss": 0.0}},
    "values": {"attention": "value_residual", "qk_norm": "rms", "position": "rotary", "norm": "rms"},
}
"""GPT-2's parts; Llama's, with grouped keys; a mixture of experts; a variant that remembers the first layer."""


@dataclass(frozen=True)
class Proof:
    """How a case is trained, and what it has to keep to.

    Args:
        bound: The largest difference allowed.
        of_weights: Whether weights are held to it, too. In half precision AdamW's first steps have the size of the
            learning rate wherever rounding decides the sign.
        model: Fields of the model that differ.
        optimization: Options that differ.
        trainer: Flags that differ.
        layout: Fields of the layout that differ.
        accumulate: Micro-batches of an optimizer step.
        marks: Whether rows hold several documents, kept apart, and targets that do not count.
    """

    bound: float = 1e-10
    of_weights: bool = True
    model: Mapping[str, Any] = field(default_factory=dict)
    optimization: Mapping[str, Any] = field(default_factory=dict)
    trainer: Mapping[str, Any] = field(default_factory=dict)
    layout: Mapping[str, Any] = field(default_factory=dict)
    accumulate: int = 1
    marks: bool = False


PROOFS: dict[str, Proof] = {
    "adamw": Proof(),
    "muon": Proof(optimization={"optimizer": "muon", "lr": 1e-3}, trainer={"gradient_clip_val": 0.1}),
    "clip, z-loss, documents": Proof(trainer={"gradient_clip_val": 0.1}, optimization={"z_loss": 1e-2}, marks=True),
    "accumulated, by value": Proof(
        accumulate=2, trainer={"gradient_clip_val": 1e-3, "gradient_clip_algorithm": "value"}
    ),
    "checkpointing block": Proof(model={"checkpointing": "block"}, layout={"reshard": False}),
    "checkpointing attention": Proof(model={"checkpointing": "attention"}),
    "mup": Proof(optimization={"mup": {"base_dim": 16, "base_head_dim": 8}}),
    "bf16": Proof(bound=1e-3, of_weights=False, trainer={"precision": "bf16-mixed"}),
}


@dataclass(frozen=True)
class Case:
    """One line of the table.

    Args:
        layout: Sizes of the axes and other fields of the layout.
        model: One of :data:`MODELS`.
        proof: One of :data:`PROOFS`.
    """

    layout: Mapping[str, Any]
    model: str
    proof: str

    def made(self) -> Layout:
        """The layout."""
        return Layout(**{"data": 1, **self.layout, **PROOFS[self.proof].layout})

    def described(self) -> str:
        """The case in words."""
        layout = self.made()
        more = " + sequence" if layout.sequence else ""
        return f"{layout.described()}{more} | {self.model} | {self.proof}"


LAYOUTS: list[dict[str, Any]] = [
    {"data": 2},
    {"shard": 2},
    {"tensor": 2},
    {"tensor": 2, "sequence": True},
    {"data": 2, "shard": 2},
    {"shard": 4},
    {"shard": 2, "tensor": 2},
    {"shard": 2, "tensor": 2, "sequence": True},
    {"data": 2, "tensor": 2, "sequence": True},
]
SHORT: list[Case] = [
    Case({"data": 2, "shard": 2}, "gpt2", "clip, z-loss, documents"),
    Case({"shard": 4}, "values", "muon"),
    Case({"shard": 2, "tensor": 2}, "llama", "accumulated, by value"),
    Case({"shard": 2, "tensor": 2, "sequence": True}, "mixture", "clip, z-loss, documents"),
    Case({"shard": 2, "tensor": 2, "sequence": True}, "values", "muon"),
    Case({"data": 2, "tensor": 2, "sequence": True}, "gpt2", "checkpointing block"),
    Case({"shard": 2, "tensor": 2}, "gpt2", "bf16"),
]
"""The cases that the test suite runs; together they enter every part of the layouts."""


def all_cases() -> list[Case]:
    """Every layout with every model and proof that goes with it."""
    cases = [Case(*each) for each in itertools.product(LAYOUTS, MODELS, PROOFS)]
    return [case for case in cases if case.proof != "mup" or case.model == "values"]


@dataclass(frozen=True)
class Trained:
    """What a training left.

    Args:
        losses: Of each micro-batch.
        weights: At the end, by name; empty in all processes but the first.
        validation: The loss of the validation rows at the end.
    """

    losses: list[float]
    weights: dict[str, Tensor]
    validation: float


class Rows(L.LightningDataModule):
    """The same random rows every time, of which each process reads its share.

    Args:
        steps: Optimizer steps.
        proof: How they are made up.
    """

    def __init__(self, steps: int, proof: Proof) -> None:
        super().__init__()
        self.steps, self.proof = steps, proof

    def _batches(self, steps: int, seed: int) -> Iterator[dict[str, Tensor]]:
        generator = torch.Generator().manual_seed(seed)
        rank, size = data_place(self.trainer)
        for _ in range(steps):
            tokens = torch.randint(VOCABULARY, (ROWS, TIME + 1), generator=generator)
            tokens = tokens * (1 + tokens % 3) % VOCABULARY  # some are more frequent
            ids, targets = tokens[:, :-1].contiguous(), tokens[:, 1:].clone()
            batch = {"ids": ids, "targets": targets}
            if self.proof.marks:
                targets[0, : TIME // 2] = IGNORED
                targets[1:3, 3] = IGNORED
                batch["documents"] = (ids % 7 == 0).long().cumsum(dim=1)
            for micro in range(self.proof.accumulate):
                each = ROWS // self.proof.accumulate
                rows = range(micro * each, (micro + 1) * each)
                own = rows[rank * each // size : (rank + 1) * each // size]
                yield {name: tensor[own.start : own.stop] for name, tensor in batch.items()}

    def train_dataloader(self) -> Any:
        return DataLoader(cast(Any, list(self._batches(self.steps, 1))), batch_size=None)

    def val_dataloader(self) -> Any:
        return DataLoader(cast(Any, list(self._batches(2, 2))), batch_size=None)


class Losses(L.Callback):
    """Keeps the loss of each micro-batch, and the weights at the end of the training as one process has them."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.weights: dict[str, Tensor] = {}

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, *rest: Any) -> None:
        self.losses.append(float(outputs["loss"]))

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        strategy = trainer.strategy
        state = strategy.whole_state() if isinstance(strategy, MeshStrategy) else strategy.lightning_module_state_dict()
        self.weights = {name: tensor.clone() for name, tensor in state.items()}


def train(model: str, proof: Proof, steps: int, layout: Layout | None) -> Trained:
    """Train in a layout whose processes have met, or, with None, in this process alone."""
    flags: dict[str, Any] = dict.fromkeys(_QUIET, False)
    torch.manual_seed(0)
    fields = {**SIZES, **MODELS[model], **proof.model}
    optimization = {"lr": 1e-3, "schedule": "constant", "warmup": 0.0, **proof.optimization}
    if isinstance(optimization.get("mup"), dict):
        optimization["mup"] = MuP(**optimization["mup"])
    kept, devices, strategy = Losses(), 1, cast(Any, "auto")
    if layout is not None:
        devices, strategy = layout.devices, MeshStrategy(layout, process_group_backend="gloo")
    with tempfile.TemporaryDirectory() as folder:
        trainer = L.Trainer(
            **flags,
            accelerator="cpu",
            devices=devices,
            strategy=strategy,
            max_epochs=1,
            num_sanity_val_steps=0,
            use_distributed_sampler=False,
            accumulate_grad_batches=proof.accumulate,
            callbacks=[kept],
            default_root_dir=folder,
            **{"precision": "64-true", **proof.trainer},
        )
        trainer.fit(GPTModule(Optimization(**optimization), **fields), Rows(steps, proof))
    return Trained(kept.losses, kept.weights, float(trainer.callback_metrics["val/loss"]))


def differences(ours: Trained, theirs: Trained) -> list[float]:
    """The largest difference of losses, of weights and of the validation loss; infinite where names differ."""
    weights = math.inf
    if set(ours.weights) == set(theirs.weights):
        weights = max(float((tensor - theirs.weights[name]).abs().max()) for name, tensor in ours.weights.items())
    losses = max(abs(own - other) for own, other in zip(ours.losses, theirs.losses, strict=True))
    return [losses, weights, abs(ours.validation - theirs.validation)]


@dataclass(frozen=True)
class Result:
    """The outcome of a case.

    Args:
        case: The case.
        differences: As :func:`differences` returns them; None if it failed.
        error: What it failed with.
        seconds: How long it took.
    """

    case: Case
    differences: list[float] | None
    error: str
    seconds: float

    @property
    def holds(self) -> bool:
        """Whether every difference is within the bound."""
        if self.differences is None:
            return False
        proof, (losses, weights, validation) = PROOFS[self.case.proof], self.differences
        return max(losses, weights if proof.of_weights else 0.0, validation) <= proof.bound

    def described(self) -> str:
        """The line of the table."""
        found = self.error if self.differences is None else " | ".join(f"{each:.0e}" for each in self.differences)
        return f"{self.case.described()} | {found} | {'holds' if self.holds else 'FAILS'} | {self.seconds:.1f} s"


def _process(
    rank: int, port: int, cases: Sequence[Case], references: Mapping[Any, Trained], steps: int, out: str
) -> None:
    """One of the processes of a launch, which trains all cases one after another."""
    size = cases[0].made().devices
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "NODE_RANK": "0", "WORLD_SIZE": str(size)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    timeout = datetime.timedelta(seconds=60)
    store = dist.TCPStore("127.0.0.1", port, size, is_master=rank == 0, timeout=timeout)  # type: ignore[attr-defined]
    results = []
    for number, case in enumerate(cases):
        start, found, error = time.perf_counter(), None, ""
        own = dist.PrefixStore(str(number), store)  # type: ignore[attr-defined]
        dist.init_process_group("gloo", store=own, rank=rank, world_size=size, timeout=timeout)
        try:
            trained = train(case.model, PROOFS[case.proof], steps, case.made())
            if rank == 0:
                found = differences(trained, references[case.model, case.proof])
        except Exception as caught:
            error = f"{type(caught).__name__}: {str(caught).splitlines()[0][:200]}"
            if os.environ.get("LAYOUTS_TRACE"):
                traceback.print_exc()
        results.append(Result(case, found, error, time.perf_counter() - start))
        if rank == 0:
            print(results[-1].described(), flush=True)
        if error:
            break  # the other processes may wait in the middle of an exchange
        dist.destroy_process_group()  # with the groups of all axes, each of which has threads that wait busily
    if rank == 0:
        torch.save(results, out)
    os._exit(0)  # what gloo's threads do while the interpreter takes itself apart is of no interest


def quieten() -> None:
    """Silence what Lightning says of each training."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def run(cases: Sequence[Case], steps: int) -> list[Result]:
    """Train cases of one number of devices in one launch, again after one that failed; returns their results."""
    quieten()
    left, results = list(cases), []
    needed = dict.fromkeys((case.model, case.proof) for case in cases)
    references = {each: train(each[0], PROOFS[each[1]], steps, None) for each in needed}
    while left:
        with tempfile.TemporaryDirectory() as folder:
            out = str(Path(folder, "results.pt"))
            given = (free_port(), left, references, steps, out)
            start_processes(_process, given, nprocs=left[0].made().devices, start_method="fork")  # type: ignore[no-untyped-call]
            done: list[Result] = torch.load(out, weights_only=False)
        results += done
        left = left[len(done) :]
    return results


def main(args: Sequence[str] | None = None) -> int:
    """Run the script; returns its exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--short", action="store_true", help="the cases of the test suite, three steps each")
    parser.add_argument("--devices", type=int, nargs="+", default=[2, 4], help="numbers of processes")
    parser.add_argument("--only", nargs="+", default=[], help="cases whose line has all these words")
    parser.add_argument("--steps", type=int, help="optimizer steps; 10, or 3 with --short")
    options = parser.parse_args(args)
    cases = [
        case
        for case in (SHORT if options.short else all_cases())
        if all(word in case.described() for word in options.only)
    ]
    steps = options.steps or (3 if options.short else 10)
    print(f"layout | model | proof | losses | weights | validation (largest differences after {steps} steps)")
    results: list[Result] = []
    for devices in options.devices:
        of_size = [case for case in cases if case.made().devices == devices]
        results += run(of_size, steps) if of_size else []
    failed = [result for result in results if not result.holds]
    print(f"{len(results) - len(failed)} of {len(results)} hold")
    return 1 if failed or not results else 0


if __name__ == "__main__":
    sys.exit(main())
