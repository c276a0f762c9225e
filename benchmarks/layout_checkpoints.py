"""Checkpoints saved under each layout and loaded under each other, held against one process that was never stopped.

    python -m benchmarks.layout_checkpoints [--short] [--devices 1 2 4]

Real processes meet over gloo and train five steps in float64 in one layout, then save in the background, as
``lightning-gpt fit`` does. Others, in another layout and often another number, load that and train five steps more,
whose losses are those of a single process that trains all ten: a layout with one device writes a folder, too, and one
process without a layout a file. Each line names a model, the layout that saved and the one that loaded, and the largest
difference of these losses and of the weights at the end.

The exit status is 1 if one is above 1e-10.
"""

import argparse
import datetime
import os
import sys
import tempfile
import traceback
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import lightning as L
import torch
import torch.distributed as dist
from torch import Tensor
from torch.multiprocessing.spawn import start_processes
from torch.utils.data import DataLoader, IterableDataset

from benchmarks.layouts import MODELS, PROOFS, SIZES, Losses, Proof, Rows, Trained, differences, free_port, quieten
from lightning_gpt.checkpoint_folder import is_folder
from lightning_gpt.parallel.layout import Layout
from lightning_gpt.parallel.strategy import MeshStrategy
from lightning_gpt.training.checkpoint_io import CheckedFiles
from lightning_gpt.training.module import GPTModule
from lightning_gpt.training.optim import Optimization

STEPS, SAVED = 10, 5
BOUND = 1e-10

ALONE = "one process"
LAYOUTS: dict[str, dict[str, Any]] = {
    ALONE: {},
    "layout of one": {},
    "data 2": {"data": 2},
    "shard 2": {"shard": 2},
    "tensor 2": {"tensor": 2},
    "data 2 × shard 2": {"data": 2, "shard": 2},
    "shard 4": {"shard": 4},
    "tensor 4": {"tensor": 4},
    "shard 2 × tensor 2 + sequence": {"shard": 2, "tensor": 2, "sequence": True},
}
"""Each by its name; a file is written by the first one alone."""

TRAININGS = [("gpt2", "adamw"), ("llama", "adamw"), ("mixture", "adamw"), ("values", "muon")]
SHORT_LAYOUTS = [ALONE, "shard 2", "shard 2 × tensor 2 + sequence"]
SHORT_TRAININGS = [("values", "muon")]  # whose embeddings and vectors AdamW trains


def made(name: str) -> Layout | None:
    """A layout of :data:`LAYOUTS`; None for one process without any."""
    return None if name == ALONE else Layout(**{"data": 1, **LAYOUTS[name]})


def devices(name: str) -> int:
    """The number of processes of a layout."""
    layout = made(name)
    return 1 if layout is None else layout.devices


def is_possible(name: str, model: str) -> bool:
    """Whether a model can be laid out so: its key heads can be divided."""
    return not (model == "llama" and LAYOUTS[name].get("tensor") == 4)


class _From(IterableDataset[dict[str, Tensor]]):
    """Batches from a number on, which Lightning counts on from."""

    def __init__(self, batches: Sequence[dict[str, Tensor]], first: int) -> None:
        self.batches, self.first = batches, first

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        return iter(self.batches[self.first :])


class ResumedRows(Rows):
    """Rows that continue where a checkpoint stands."""

    first = 0

    def state_dict(self) -> dict[str, Any]:
        return {"step": self.trainer.global_step}  # type: ignore[union-attr]

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.first = int(state_dict["step"])

    def train_dataloader(self) -> Any:
        return DataLoader(_From(list(self._batches(self.steps, 1)), self.first), batch_size=None)


class SaveOnce(L.Callback):
    """Saves after :data:`SAVED` steps and lets the training go on by two, while the save is written.

    Args:
        path: Where it is saved.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *rest: Any) -> None:
        if trainer.global_step == SAVED:
            trainer.save_checkpoint(self.path)
        trainer.should_stop = trainer.global_step == SAVED + 2


def train(model: str, proof: str, name: str, load: Path | None = None, save: Path | None = None) -> Trained:
    """Train in a layout whose processes have met, from a checkpoint or from the start.

    Args:
        model: One of :data:`~benchmarks.layouts.MODELS`.
        proof: One of :data:`~benchmarks.layouts.PROOFS`.
        name: The layout.
        load: The checkpoint to resume from.
        save: Where to save, instead of training to the end.
    """
    layout, proved = made(name), PROOFS[proof]
    torch.manual_seed(0 if load is None else 1)
    strategy: Any = "auto"
    if layout is not None:
        strategy = MeshStrategy(layout, process_group_backend="gloo")
        strategy.saves.background = True
    kept = Losses()
    with tempfile.TemporaryDirectory() as folder:
        trainer = L.Trainer(
            accelerator="cpu",
            devices=devices(name),
            strategy=strategy,
            max_steps=STEPS,
            max_epochs=-1,
            num_sanity_val_steps=0,
            limit_val_batches=0,
            use_distributed_sampler=False,
            callbacks=[kept, *([] if save is None else [SaveOnce(save)])],
            plugins=[CheckedFiles(background=True)],
            default_root_dir=folder,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            precision="64-true",
            **{key: value for key, value in proved.trainer.items() if key != "precision"},
        )
        module = GPTModule(_optimization(proved), **{**SIZES, **MODELS[model], **proved.model})
        trainer.fit(module, ResumedRows(STEPS, Proof()), ckpt_path=None if load is None else str(load))
    return Trained(kept.losses, kept.weights, 0.0)


def _optimization(proof: Proof) -> Optimization:
    options: dict[str, Any] = {"lr": 1e-3, "schedule": "cosine", "warmup": 0.2, **proof.optimization}
    return Optimization(**options)


Work = tuple[str, str, str, str | None]
"""A model, a proof, the layout, and the layout whose checkpoint is loaded, or None to save one."""


def _path(folder: str, model: str, name: str) -> Path:
    return Path(folder, f"{model}-{list(LAYOUTS).index(name)}.ckpt")


def _process(
    rank: int, size: int, port: int, work: Sequence[Work], references: Mapping[str, Trained], folder: str, out: str
) -> None:
    """One of the processes of a launch, which does all its work."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "NODE_RANK": "0", "WORLD_SIZE": str(size)}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    timeout = datetime.timedelta(seconds=60)
    store = dist.TCPStore("127.0.0.1", port, size, is_master=rank == 0, timeout=timeout)  # type: ignore[attr-defined]
    held = []
    for number, (model, proof, name, loaded) in enumerate(work):
        if number:
            dist.destroy_process_group()  # with the groups of all axes, each of which has threads that wait busily
        own = dist.PrefixStore(str(number), store)  # type: ignore[attr-defined]
        dist.init_process_group("gloo", store=own, rank=rank, world_size=size, timeout=timeout)
        try:
            if loaded is None:
                path = _path(folder, model, name)
                train(model, proof, name, save=path)
                assert is_folder(path) == (name != ALONE)
                continue
            trained = train(model, proof, name, load=_path(folder, model, loaded))
        except BaseException as error:
            traceback.print_exc()
            print(f"{model} | {loaded} → {name} | {type(error).__name__}: {str(error)[:200]}", flush=True)
            os._exit(1)
        if rank == 0:
            whole = references[model]
            losses, weights, _ = differences(trained, Trained(whole.losses[SAVED:], whole.weights, 0.0))
            held.append(max(losses, weights) <= BOUND and len(trained.losses) == STEPS - SAVED)
            said = "holds" if held[-1] else "FAILS"
            print(f"{model}, {proof} | {loaded} → {name} | {losses:.0e} | {weights:.0e} | {said}", flush=True)
    if rank == 0:
        Path(out).write_text(" ".join(str(int(each)) for each in held))
    os._exit(0)  # what gloo's threads do while the interpreter takes itself apart is of no interest


def _launched(size: int, work: Sequence[Work], references: Mapping[str, Trained], folder: str) -> list[bool]:
    out = str(Path(folder, "results"))
    given = (size, free_port(), work, references, folder, out)
    start_processes(_process, given, nprocs=size, start_method="fork")  # type: ignore[no-untyped-call]
    return [each == "1" for each in Path(out).read_text().split()]


def run(layouts: Sequence[str], trainings: Sequence[tuple[str, str]]) -> list[bool]:
    """Save under each layout and load under each; returns whether each pair holds."""
    quieten()
    references = {model: train(model, proof, ALONE) for model, proof in trainings}
    results: list[bool] = []
    with tempfile.TemporaryDirectory() as folder:
        for saving in (True, False):
            for names in ([ALONE], *([n for n in layouts if n != ALONE and devices(n) == s] for s in (1, 2, 4))):
                here = [name for name in names if name in layouts]
                work: list[Work] = [
                    (model, proof, name, loaded)
                    for model, proof in trainings
                    for name in here
                    for loaded in ([None] if saving else cast(list[str | None], list(layouts)))
                    if is_possible(name, model) and (loaded is None or is_possible(loaded, model))
                ]
                if work:
                    results += _launched(devices(here[0]), work, references, folder)
    return results


def main(args: Sequence[str] | None = None) -> int:
    """Run the script; returns its exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--short", action="store_true", help="the pairs of the test suite")
    parser.add_argument("--devices", type=int, nargs="+", default=[1, 2, 4], help="numbers of processes")
    options = parser.parse_args(args)
    layouts = [name for name in (SHORT_LAYOUTS if options.short else LAYOUTS) if devices(name) in options.devices]
    print("model, optimizer | saved → loaded | losses | weights (largest differences)")
    results = run(layouts, SHORT_TRAININGS if options.short else TRAININGS)
    print(f"{sum(results)} of {len(results)} hold")
    return 0 if results and all(results) else 1


if __name__ == "__main__":
    sys.exit(main())
