"""How long a training waits for a checkpoint, or for the layer diagnostics, and how much slower it then is for a while.

    python -m benchmarks.pauses                                saves and diagnostics at the quick start's size
    python -m benchmarks.pauses --size 100M --what saves       with 97 million weights, 1.2 GB a checkpoint

Trains on random tokens with a Trainer. Every few steps it saves, or measures, in one way, and in the next way the next
time. The pause is how much longer that step took than the median of the steps before it; what it costs afterwards is
the same, summed over the steps that follow. Prints both for each way (median, minimum and maximum, and beside the whole
its ratio to the first way's in the same round); nothing passes or fails.
"""

import argparse
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor
from torch.utils.data import DataLoader

from benchmarks.rounds import Spread, ratio
from lightning_gpt.analysis.layer_diagnostics import begin
from lightning_gpt.analysis.probe import Probe
from lightning_gpt.background import Background
from lightning_gpt.training.checkpoint_io import CheckedFiles
from lightning_gpt.training.module import GPTModule
from lightning_gpt.training.precision import fastest_precision

SIZES: dict[str, dict[str, Any]] = {
    "quickstart": {"n_layer": 4, "n_head": 4, "dim": 256, "block_size": 128, "vocab_size": 4096, "rows": 8},
    "100M": {"n_layer": 12, "n_head": 12, "dim": 768, "block_size": 64, "vocab_size": 16384, "rows": 2},
}
Way = Callable[[L.Trainer, GPTModule], None]


class Saves(CheckedFiles):
    """A Trainer's checkpoints, in a way that changes from save to save.

    Args:
        folder: Where they are written.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._path = folder / "last.ckpt"
        self._plainly = False

    def ways(self) -> dict[str, Way]:
        """Each way of saving."""
        return {
            "by torch.save": lambda trainer, module: self._save(trainer, plainly=True),
            "before the next step": lambda trainer, module: self._save(trainer),
            "in a thread": lambda trainer, module: self._save(trainer, background=True),
        }

    def _save(self, trainer: L.Trainer, *, plainly: bool = False, background: bool = False) -> None:
        self._plainly, self.saves.background = plainly, background
        trainer.save_checkpoint(self._path, weights_only=False)

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write a checkpoint in the way that was chosen."""
        if self._plainly:
            torch.save(checkpoint, path)
        else:
            super().save_checkpoint(checkpoint, path, storage_options)


class Measurements:
    """Layer diagnostics of the model on two rows, in each way.

    Args:
        rows: Ids and targets, ``(2, rows, time)``.
    """

    def __init__(self, rows: Tensor) -> None:
        self._rows, self._work = rows, Background("layer diagnostics")

    def ways(self) -> dict[str, Way]:
        """Each way of measuring."""
        return {
            "before the next step": lambda trainer, module: self._measure(module, background=False),
            "in a thread": lambda trainer, module: self._measure(module, background=True),
        }

    def _measure(self, module: GPTModule, *, background: bool) -> None:
        self._work.wait()
        finish = begin(Probe.take(module.model, *self._rows))
        if background:
            self._work.begin(finish)
        else:
            finish()


class Pauses(Callback):
    """Does something every few steps and times all steps.

    Args:
        ways: What is done, in turns.
        every: Steps between two.
    """

    def __init__(self, ways: dict[str, Way], every: int) -> None:
        self.ways, self.every = ways, every
        self.step_seconds: list[float] = []
        self.pause: dict[str, list[float]] = {name: [] for name in ways}
        self.later: dict[str, list[float]] = {name: [] for name in ways}
        self._steps: list[float] = []
        self._last = 0.0
        self._next = 0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._last = time.perf_counter()

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any) -> None:
        assert isinstance(pl_module, GPTModule)
        if len(self._steps) == self.every:
            list(self.ways.values())[self._next % len(self.ways)](trainer, pl_module)
        now = time.perf_counter()
        self._steps.append(now - self._last)
        self._last = now
        if len(self._steps) == 2 * self.every:
            name = list(self.ways)[self._next % len(self.ways)]
            usual = statistics.median(self._steps[1 : self.every])
            if self._next >= len(self.ways):  # the first round warms up
                self.step_seconds.append(usual)
                self.pause[name].append(self._steps[self.every] - usual)
                self.later[name].append(sum(self._steps[self.every + 1 :]) - usual * (self.every - 1))
            self._steps, self._next = [], self._next + 1


def measure(what: str, size: dict[str, Any], every: int, rounds: int, folder: Path) -> None:
    """Train, and print what saves or diagnostics cost."""
    sizes = dict(size)
    rows, width, vocabulary = sizes.pop("rows"), sizes["block_size"] + 1, sizes["vocab_size"]
    tokens = torch.randint(vocabulary, (rows * 64, width), generator=torch.Generator().manual_seed(0))
    batches = [{"ids": row[:-1], "targets": row[1:]} for row in tokens]
    loader: DataLoader[dict[str, Tensor]] = DataLoader(batches, batch_size=rows)  # type: ignore[arg-type]
    saves, probed = Saves(folder), torch.stack([tokens[:2, :-1], tokens[:2, 1:]])
    pauses = Pauses(saves.ways() if what == "saves" else Measurements(probed).ways(), every)
    precision: Any = fastest_precision("cpu")[0]
    trainer = L.Trainer(
        accelerator="cpu",
        devices=1,
        precision=precision,
        max_steps=2 * every * len(pauses.ways) * (1 + rounds),
        max_epochs=-1,
        gradient_clip_val=1.0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[pauses],
        plugins=[saves],
        default_root_dir=folder,
    )
    module = GPTModule(**sizes)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Lightning's advice is for real runs
        trainer.fit(module, loader)
    millions = sum(weight.numel() for weight in module.parameters()) / 1e6
    print(f"{what}, {millions:.1f} million weights, {torch.get_num_threads()} threads, a step of", end=" ")
    print(f"{statistics.median(pauses.step_seconds) * 1000:.0f} ms")
    whole = {
        name: [sum(pair) for pair in zip(pauses.pause[name], pauses.later[name], strict=True)] for name in pauses.ways
    }
    first = next(iter(whole.values()))
    for name in pauses.ways:
        parts = [_text(Spread.of(each).scaled(1000)) for each in (pauses.pause[name], pauses.later[name], whole[name])]
        compared = ratio(whole[name], first)
        print(f"  {name}: pause {parts[0]} ms, later {parts[1]} ms, whole {parts[2]} ms,", end=" ")
        print(f"{compared.median:.2f} x ({compared.least:.2f} to {compared.most:.2f})", flush=True)


def _text(spread: Spread) -> str:
    return f"{spread.median:.0f} ({spread.least:.0f} to {spread.most:.0f})"


def main() -> None:
    """Parse the flags and run the measurements."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="quickstart")
    parser.add_argument("--what", nargs="+", choices=["saves", "diagnostics"], default=["saves", "diagnostics"])
    parser.add_argument("--every", type=int, default=12, help="steps before and after each")
    parser.add_argument("--rounds", type=int, default=5, help="rounds, after one that is discarded")
    parser.add_argument("--folder", type=Path, help="where checkpoints are written; a temporary folder if omitted")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        for what in options.what:
            measure(what, SIZES[options.size], options.every, options.rounds, Path(folder))


if __name__ == "__main__":
    main()
