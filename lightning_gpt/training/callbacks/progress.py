"""The progress of a run: a live bar on a terminal, occasional lines elsewhere."""

import math
import time
from datetime import timedelta
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import ProgressBar
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from lightning_gpt.console import LinePace, console
from lightning_gpt.training.callbacks.step_metrics import StepMetrics

_BAR_WIDTH = 10


class RunProgress(ProgressBar):
    """Shows optimizer steps done, time left, loss, tokens/s, perplexity and model FLOPs utilisation.

    On a narrow terminal the last of them are left out; the steps and the time left always stay.

    Args:
        metrics: The source of the figures, which change at every logged step.
    """

    def __init__(self, metrics: StepMetrics) -> None:
        super().__init__()
        self.metrics = metrics
        self._enabled = True
        self._bar: Progress | None = None

    def disable(self) -> None:
        self._enabled = False

    def enable(self) -> None:
        self._enabled = True

    @property
    def _shown(self) -> bool:
        return self._enabled and self.trainer.is_global_zero

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        total = trainer.estimated_stepping_batches
        self._total = None if total == float("inf") else int(total)
        self._first_step, self._started = trainer.global_step, time.monotonic()
        self._pace = LinePace()
        self._begin("step", self._total, trainer.global_step)

    def _begin(self, what: str, total: int | None, completed: int = 0) -> None:
        if not self._shown or not console.is_terminal:
            return
        self._bar = Progress(
            TextColumn("{task.description}"),
            MofNCompleteColumn(),
            BarColumn(bar_width=_BAR_WIDTH),
            TimeRemainingColumn(),
            TextColumn("left{task.fields[figures]}"),
            console=console,
            transient=True,
        )
        self._task = self._bar.add_task(what, total=total, completed=completed, figures="")
        self._bar.start()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._bar is not None:
            self._bar.update(self._task, completed=trainer.global_step, figures=self._figures(self._room()))
        elif self._shown and self.metrics.latest and self._pace.is_due():
            self._line(trainer.global_step)

    def _line(self, step: int) -> None:
        line = f"step {step:,}" + (f"/{self._total:,}" if self._total else "")
        done = step - self._first_step
        if self._total and done:
            left = (time.monotonic() - self._started) / done * (self._total - step)
            line += f"  {timedelta(seconds=int(left))} left"
        console.print(line + self._figures(math.inf), markup=False)

    def _room(self) -> int:
        """The columns of the terminal that the rest of the bar leaves for figures."""
        assert self._bar is not None
        task = self._bar.tasks[0]
        left = "-:--:--" if task.time_remaining is None else str(timedelta(seconds=int(task.time_remaining)))
        counts = 2 * f"{task.total or task.completed:.0f}/"
        shown = (task.description, counts, "-" * _BAR_WIDTH, left, "left")
        return console.width - len(" ".join(shown))

    def _figures(self, room: float) -> str:
        """The latest figures, as many as fit into ``room`` columns."""
        latest = self.metrics.latest
        if not latest:
            return ""
        figures = [
            f"  loss {latest['train/loss']:.3f}",
            f"  {latest['train/tokens_per_second']:,.0f} tokens/s",
            f"  perplexity {latest['train/perplexity']:,.1f}",
        ]
        if "train/mfu" in latest:
            figures.append(f"  MFU {latest['train/mfu']:.0%}")
        while figures and len("".join(figures)) > room:
            figures.pop()
        return "".join(figures)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self._bar is not None:
            self._bar.update(self._task, description="validating", figures="")
        else:
            what = "first validation" if trainer.sanity_checking else "validating"
            counts = trainer.num_sanity_val_batches if trainer.sanity_checking else trainer.num_val_batches
            self._begin(what, self._batches(counts))

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.sanity_checking or trainer.state.fn == "validate":
            self._stop()
            return
        if self._bar is not None:
            self._bar.update(self._task, description="step")
        if self._shown and "val/loss" in trainer.callback_metrics:
            loss = float(trainer.callback_metrics["val/loss"])
            perplexity = float(trainer.callback_metrics["val/perplexity"])
            line = f"step {trainer.global_step:,}: validation loss {loss:.4f}, perplexity {perplexity:,.2f}"
            console.print(line, markup=False)

    def on_test_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._begin("testing", self._batches(trainer.num_test_batches))

    def on_test_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._stop()

    def on_predict_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._begin("predicting", self._batches(trainer.num_predict_batches))

    def on_predict_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._stop()

    def on_validation_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.sanity_checking or trainer.state.fn == "validate":
            self._advance()

    def on_test_batch_end(self, *_: Any) -> None:
        self._advance()

    def on_predict_batch_end(self, *_: Any) -> None:
        self._advance()

    def _advance(self) -> None:
        if self._bar is not None:
            self._bar.advance(self._task)

    @staticmethod
    def _batches(counts: list[int | float]) -> int | None:
        total = sum(counts)
        return None if total == float("inf") else int(total)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._stop()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self._stop()

    def _stop(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
