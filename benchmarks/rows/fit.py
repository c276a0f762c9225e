"""A step of a real ``fit`` compared with a bare loop on the same model and batches."""

import tempfile
import warnings
from collections.abc import Iterator
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import TensorBoardLogger

from benchmarks import peers
from benchmarks.bench import OURS, Bench
from benchmarks.report import Outcome
from benchmarks.result import Result, Target
from benchmarks.rounds import Spread, ratio
from benchmarks.subject import Subject
from lightning_gpt.data.datamodule import TextData
from lightning_gpt.training.callbacks import Cost, RunProgress, StepMetrics
from lightning_gpt.training.device_clock import clock
from lightning_gpt.training.module import GPTModule

_N_LAYER = 4
_STEPS_A_ROUND = 3


class BareSteps(Callback):
    """Alternates the Trainer's steps with as many bare steps of a second model, and times both.

    Args:
        subject: The model of the bare loop.
        rounds: Number of measured rounds; one more comes first and is discarded.
    """

    def __init__(self, subject: Subject, rounds: int) -> None:
        self.subject, self.rounds = subject, rounds
        self.fit_seconds: list[float] = []
        self.bare_seconds: list[float] = []

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._batches: list[Any] = []
        self._since = clock(self.subject.torch_device)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._batches.append(batch)
        if len(self._batches) < _STEPS_A_ROUND:
            return
        now = clock(self.subject.torch_device)
        self.fit_seconds.append((now - self._since) / _STEPS_A_ROUND)
        for each in self._batches:
            self.subject.ids, self.subject.targets = each["ids"], each["targets"]
            self.subject.step()
        self._batches = []
        self._since = clock(self.subject.torch_device)
        self.bare_seconds.append((self._since - now) / _STEPS_A_ROUND)


def fit(bench: Bench) -> Iterator[Outcome]:
    """A Trainer step with ``fit``'s callbacks, progress bar, data and TensorBoard logs every step, vs. a bare loop."""
    work = bench.workload
    bare = BareSteps(peers.build(bench.spec(OURS, _N_LAYER)), bench.rounds)
    metrics = StepMetrics()
    with tempfile.TemporaryDirectory() as folder:
        trainer = L.Trainer(
            max_steps=_STEPS_A_ROUND * (1 + bench.rounds),
            accelerator="cpu" if bench.device == "cpu" else "cuda",
            devices=1,
            precision="32-true",
            gradient_clip_val=1.0,
            log_every_n_steps=1,
            logger=TensorBoardLogger(folder, "fit"),
            callbacks=[metrics, Cost(), RunProgress(metrics), bare],
            enable_checkpointing=False,
            enable_model_summary=False,
            limit_val_batches=0,
        )
        vocab_size = work.vocab_size
        data = TextData(block_size=work.time, batch_size=work.batch, tokenizer=_tokenizer(vocab_size))
        module = GPTModule(
            n_layer=_N_LAYER, n_head=work.n_head, dim=work.dim, block_size=work.time, vocab_size=vocab_size
        )
        with warnings.catch_warnings(), bare.subject.around():
            warnings.simplefilter("ignore")  # Lightning's advice is for real runs
            trainer.fit(module, data)
    times = {"fit": bare.fit_seconds[1:], "bare loop": bare.bare_seconds[1:]}
    figures = {name: Spread.of(seconds) for name, seconds in times.items()}
    what = f"step of fit (bar, TensorBoard, logged every step), L = {_N_LAYER}, vs. a bare loop"
    value = ratio(times["fit"], times["bare loop"])
    yield Result("fit", what, value, "x", Target(1.03, "at most"), figures, "s")


def _tokenizer(vocab_size: int) -> str | int:
    """GPT-2's tokenizer if the size matches, else one of that size trained on the documents."""
    return "gpt2" if vocab_size == 50257 else vocab_size
