"""A small training in a layout or in one process alone, what it leaves, and launches of many: for tables of layouts."""

import datetime
import json
import logging
import math
import os
import socket
import tempfile
import time
import traceback
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast

import lightning as L
import torch
import torch.distributed as dist
from torch import Tensor
from torch.multiprocessing.spawn import ProcessExitedException, start_processes
from torch.utils.data import DataLoader, IterableDataset

from benchmarks.layout_cases import MODELS, ROWS, SIZES, TIME, VOCABULARY, Proof
from lightning_gpt.data.share import data_place
from lightning_gpt.models.head import IGNORED
from lightning_gpt.parallel.layout import Layout
from lightning_gpt.parallel.strategy import MeshStrategy
from lightning_gpt.training.callbacks import Averaging
from lightning_gpt.training.checkpoint_io import CheckedFiles
from lightning_gpt.training.module import GPTModule
from lightning_gpt.training.mup import MuP
from lightning_gpt.training.optim import Optimization

_QUIET = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")


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


@dataclass(frozen=True)
class Save:
    """A save in the middle of a training.

    Args:
        path: Where; in the background, as ``lightning-gpt fit`` saves.
        step: After this many optimizer steps. The training goes on by two more while the save is written, and ends.
    """

    path: Path
    step: int


class _From(IterableDataset[dict[str, Tensor]]):
    """Batches from a number on, which Lightning counts on from."""

    def __init__(self, batches: Sequence[dict[str, Tensor]], first: int) -> None:
        self.batches, self.first = batches, first

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        return iter(self.batches[self.first :])


class Rows(L.LightningDataModule):
    """The same random rows every time, of which each process reads its share, from where a checkpoint stands.

    Args:
        steps: Optimizer steps.
        proof: How they are made up.
    """

    def __init__(self, steps: int, proof: Proof) -> None:
        super().__init__()
        self.steps, self.proof = steps, proof
        self._first = 0

    def state_dict(self) -> dict[str, Any]:
        assert self.trainer is not None
        return {"step": self.trainer.global_step}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._first = int(state_dict["step"]) * self.proof.accumulate

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
        return DataLoader(_From(list(self._batches(self.steps, 1)), self._first), batch_size=None)

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


class _SaveOnce(L.Callback):
    def __init__(self, save: Save) -> None:
        self.save = save

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        if trainer.global_step == self.save.step:
            trainer.save_checkpoint(self.save.path)
        trainer.should_stop = trainer.global_step == self.save.step + 2


def train(
    model: str, proof: Proof, steps: int, layout: Layout | None, load: Path | None = None, save: Save | None = None
) -> Trained:
    """Train in a layout whose processes have met, or, with None, in this process alone.

    Args:
        model: One of :data:`~benchmarks.layout_cases.MODELS`.
        proof: How.
        steps: Optimizer steps, those before ``load`` included.
        layout: The layout.
        load: The checkpoint to resume from.
        save: What to save in the middle, instead of training to the end.
    """
    flags: dict[str, Any] = dict.fromkeys(_QUIET, False)
    torch.manual_seed(0 if load is None else 1)  # what is loaded does not depend on what was drawn
    fields = {**SIZES, **MODELS[model], **proof.model}
    optimization = {"lr": 1e-3, "schedule": "constant", "warmup": 0.0, **proof.optimization}
    if isinstance(optimization.get("mup"), dict):
        optimization["mup"] = MuP(**optimization["mup"])
    kept, devices, strategy = Losses(), 1, cast(Any, "auto")
    if layout is not None:
        devices, strategy = layout.devices, MeshStrategy(layout, process_group_backend="gloo")
        strategy.saves.background = True
    callbacks = [kept, Averaging(proof.averaging), *([] if save is None else [_SaveOnce(save)])]
    with tempfile.TemporaryDirectory() as folder:
        trainer = L.Trainer(
            **flags,
            accelerator="cpu",
            devices=devices,
            strategy=strategy,
            max_epochs=1,
            limit_val_batches=1.0 if save is None else 0,
            num_sanity_val_steps=0,
            use_distributed_sampler=False,
            accumulate_grad_batches=proof.accumulate,
            callbacks=callbacks,
            plugins=[CheckedFiles(background=True)],
            default_root_dir=folder,
            **{"precision": "64-true", **proof.trainer},
        )
        module = GPTModule(Optimization(**optimization), **fields)
        trainer.fit(module, Rows(steps, proof), ckpt_path=None if load is None else str(load))
    return Trained(kept.losses, kept.weights, float(trainer.callback_metrics.get("val/loss", math.nan)))


def differences(ours: Trained, theirs: Trained) -> list[float]:
    """The largest difference of losses, of weights and of the validation loss; infinite where names differ."""
    weights = math.inf
    if set(ours.weights) == set(theirs.weights):
        weights = max(float((tensor - theirs.weights[name]).abs().max()) for name, tensor in ours.weights.items())
    losses = max(abs(own - other) for own, other in zip(ours.losses, theirs.losses, strict=True))
    return [losses, weights, abs(ours.validation - theirs.validation)]


class Claim(Protocol):
    """What a line of a table says."""

    @property
    def proved(self) -> Proof:
        """What it is held to."""

    def described(self) -> str:
        """The claim in words."""


class Trial(Claim, Protocol):
    """A claim that can be tried."""

    def differ(self, is_first: bool) -> list[float]:
        """Train in processes that have met; how far that differs from one process, known to the first one."""


@dataclass(frozen=True)
class LayoutResult:
    """The outcome of a case.

    Args:
        case: What was tried.
        differences: As :func:`differences` returns them; None if it failed, and none if there is nothing to compare.
        error: What it failed with.
        seconds: How long it took.
    """

    case: Claim
    differences: list[float] | None
    error: str
    seconds: float

    @property
    def holds(self) -> bool:
        """Whether every difference is within the bound."""
        if self.differences is None:
            return False
        losses, weights, validation = self.differences or [0.0] * 3
        return max(losses, weights if self.case.proved.of_weights else 0.0, validation) <= self.case.proved.bound

    def described(self) -> str:
        """The line of the table."""
        found = self.error if self.differences is None else " | ".join(f"{each:.0e}" for each in self.differences)
        return f"{self.case.described()} | {found} | {'holds' if self.holds else 'FAILS'} | {self.seconds:.1f} s"


def results_of(cases: Sequence[Trial], processes: int) -> list[LayoutResult]:
    """Train cases of one number of processes, each in a launch of its own; returns their results.

    Processes that train one case after another would get slower with each: the groups of a mesh are never freed, and a
    thread of each looks for messages a hundred times a second.
    """
    return [_result_of(case, processes) for case in cases]


def _result_of(case: Trial, processes: int) -> LayoutResult:
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        given = (processes, free_port(), case, Path(folder))
        try:
            start_processes(_process, given, nprocs=processes, start_method="fork")  # type: ignore[no-untyped-call]
            found, error = json.loads(Path(folder, "differences").read_text()), ""
        except ProcessExitedException:  # the others, which may wait in the middle of an exchange, were ended
            errors = Path(folder).glob("error-*")  # of the one that failed, and of one whose exchange then broke off
            found, error = None, min(errors, key=lambda file: file.stat().st_mtime_ns).read_text()
    result = LayoutResult(case, found, error, time.perf_counter() - start)
    if found or error:
        print(result.described(), flush=True)
    return result


def _process(rank: int, size: int, port: int, case: Trial, folder: Path) -> None:
    """One of the processes of a launch, which trains a case."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "NODE_RANK": "0", "WORLD_SIZE": str(size)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    timeout = datetime.timedelta(seconds=60)
    store = dist.TCPStore("127.0.0.1", port, size, is_master=rank == 0, timeout=timeout)  # type: ignore[attr-defined]
    dist.init_process_group("gloo", store=store, rank=rank, world_size=size, timeout=timeout)
    try:
        found = case.differ(rank == 0)
        dist.barrier()  # the first one has the store
    except Exception as caught:
        error = f"{type(caught).__name__}: {str(caught).splitlines()[0][:200]}"
        Path(folder, f"error-{rank}").write_text(error)
        if os.environ.get("LAYOUTS_TRACE"):
            traceback.print_exc()
        os._exit(1)
    if rank == 0:
        Path(folder, "differences").write_text(json.dumps(found))
    os._exit(0)  # what gloo's threads do while the interpreter takes itself apart is of no interest


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


def quieten() -> None:
    """Silence what Lightning says of each training."""
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore")
