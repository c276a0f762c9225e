"""``last.ckpt`` to resume from, ``best.ckpt`` to use, a series of steps, and stopping without losing anything."""

import signal
import threading
import time
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn

import lightning as L
import torch
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint
from torch import Tensor

from lightning_gpt.checkpoint_folder import Saved
from lightning_gpt.console import say
from lightning_gpt.data.batches import Batch
from lightning_gpt.errors import Stopped, WorkError
from lightning_gpt.options import Count, Positive, Range, check_options
from lightning_gpt.stopping import on_stop
from lightning_gpt.training.callbacks.series import CheckpointSeries
from lightning_gpt.training.callbacks.summary import say_next_commands
from lightning_gpt.training.checkpoint_io import wait_for_saves
from lightning_gpt.whole_file import keep_previous, previous_of, remove_abandoned, take_over


class LastCheckpoint(Checkpoint):
    """Saves ``checkpoints/last.ckpt`` every N optimizer steps or minutes, at the end, and when asked to stop.

    On Ctrl-C, SIGTERM or SIGHUP the current step finishes, the checkpoint is saved, and :class:`Stopped` is raised; a
    second Ctrl-C stops at once. With the plugin :class:`~lightning_gpt.training.checkpoint_io.CheckedFiles`, a kill
    leaves either the old checkpoint or the new one.

    Args:
        every_n_steps: Optimizer steps between two saves.
        every_minutes: Also saves at the first step that ends this long after the last save, or after the start. Of
            several processes the clock of the first counts, and they look at it at every tenth step.
        keep: 2 also keeps the checkpoint before the last one, as ``last.previous.ckpt``; a run can be resumed from it
            if the last one is damaged. 1 keeps the last one only.
        background: Whether saves are written while the training goes on, from a copy of weights and optimizer state in
            the memory of the CPU. One is written at a time; the end of the training, and a stop, wait for it.
        series: log also keeps the weights of steps 0, 1, 2, 4, 8, … in checkpoints/series, and their SHA-256 in
            SHA256SUMS there; RUN@8 names that of step 8.
        series_every: The step at which the series stops doubling; from there on, every multiple of it is kept.
    """

    def __init__(
        self,
        every_n_steps: Count = 100,
        every_minutes: Positive | None = None,
        keep: Annotated[int, Range(1, 2)] = 2,
        background: bool = True,
        series: Literal["none", "log"] = "none",
        series_every: Count = 1000,
    ) -> None:
        check_options(LastCheckpoint.__init__, locals(), "checkpoints.")
        self.every_n_steps = every_n_steps
        self.every_minutes = every_minutes
        self.keep = keep
        self.background = background
        self.series = CheckpointSeries(series_every, background) if series == "log" else None
        self.path = Path()
        self._saved_step = -1
        self._saved_at = 0.0  # by time.monotonic
        self._has_saved = False
        self._resumed_from: Path | None = None
        self._waits_for_validation = False
        self._stop_asked = False
        self._stop_waits = False
        self._trains = False

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self.path = Path(trainer.log_dir or trainer.default_root_dir) / "checkpoints" / "last.ckpt"

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._saved_step, self._saved_at = trainer.global_step, time.monotonic()
        self._stop_waits, self._trains = False, True
        if trainer.ckpt_path is not None:
            self._resumed_from = Path(trainer.ckpt_path)
            if trainer.is_global_zero:
                remove_abandoned(self._resumed_from.parent)  # the run that is resumed may have been killed in a save
        self._listen()
        if self.series is not None:
            self.series.begin(trainer, self.path.parent.parent)

    def on_sanity_check_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._listen()

    def _listen(self) -> None:
        """Replace the Trainer's own answer to signals; at its end it restores all that were there before."""
        if threading.current_thread() is threading.main_thread():
            on_stop(self._ask)

    def _ask(self, signum: int, frame: Any) -> None:
        if not self._trains:
            raise Stopped("stopped before the first optimizer step")
        if self._stop_asked and signum == signal.SIGINT:
            raise Stopped(f"stopped at once; {self._saved()}")
        self._stop_asked = True

    def _saved(self) -> str:
        """What is on the disk when the process has ended: a save that has begun is finished first."""
        path = self.path if self._has_saved else self._resumed_from
        return "no step was saved" if path is None else f"step {self._saved_step} is saved in {path}"

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        self._let_a_stop_wait(trainer)
        step = trainer.global_step
        if self.series is not None:  # first, so that a run which resumes from this step's last.ckpt finds it
            self.series.at_step(trainer)
        if (batch_idx + 1) % trainer.accumulate_grad_batches or step == self._saved_step:
            return
        stop = self._stop_agreed(trainer)
        if not stop and step % self.every_n_steps and not self._time_agreed(trainer):
            return
        loop = trainer.fit_loop
        # Resumed from a checkpoint saved between a step and its validation, Lightning would skip that validation.
        if loop._data_fetcher is not None and loop.epoch_loop._should_check_val_fx(loop._data_fetcher):
            self._waits_for_validation = True
            return
        self._save(trainer)
        if stop:
            self._stop(trainer)

    def _let_a_stop_wait(self, trainer: L.Trainer) -> None:
        """Let a stop that ``max_time`` or a callback asks for between two micro-batches wait for the end of the step.

        Between them there is no state to resume from: the gradients so far are in no checkpoint.
        """
        if trainer.fit_loop.epoch_loop._should_accumulate():
            self._stop_waits |= trainer.should_stop
            trainer.should_stop = False
        elif self._stop_waits:
            trainer.should_stop, self._stop_waits = True, False

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self._waits_for_validation and not trainer.sanity_checking:
            self._waits_for_validation = False
            self._save(trainer)
            if self._stop_agreed(trainer):
                self._stop(trainer)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.series is not None:
            self.series.end(trainer)
        if trainer.global_step != self._saved_step:
            self._save(trainer)
        wait_for_saves(trainer)

    def _save(self, trainer: L.Trainer) -> None:
        wait_for_saves(trainer)
        if self.keep == 2 and trainer.is_global_zero and not self._replaces_a_broken_one(trainer):
            try:
                keep_previous(self.path)
            except OSError as error:
                raise WorkError(f"{self.path} cannot be kept as the previous one: {error.strerror}") from None
        trainer.save_checkpoint(self.path, weights_only=False)
        self._saved_step, self._saved_at, self._has_saved = trainer.global_step, time.monotonic(), True

    def _replaces_a_broken_one(self, trainer: L.Trainer) -> bool:
        """Whether this run goes on in its folder from the checkpoint before the last, the only one that is whole."""
        if self._has_saved or trainer.ckpt_path is None:
            return False
        return Path(trainer.ckpt_path).resolve() == previous_of(self.path).resolve()

    def _stop(self, trainer: L.Trainer) -> NoReturn:
        if self.series is not None:
            self.series.end(trainer)
        wait_for_saves(trainer)
        if trainer.is_global_zero:
            say_next_commands(self.path.parent.parent)
        raise Stopped(f"stopped after optimizer step {trainer.global_step}; its state is saved in {self.path}")

    def _time_agreed(self, trainer: L.Trainer) -> bool:
        """Whether it is time for a save by the clock of the first process, the same on every process."""
        if self.every_minutes is None or (trainer.world_size > 1 and trainer.global_step % 10):
            return False
        is_time = trainer.is_global_zero and time.monotonic() - self._saved_at >= 60 * self.every_minutes
        return is_time if trainer.world_size == 1 else trainer.strategy.reduce_boolean_decision(is_time, all=False)

    def _stop_agreed(self, trainer: L.Trainer) -> bool:
        """Whether to stop now, the same on every process; several processes agree only at every tenth step."""
        if trainer.world_size == 1:
            return self._stop_asked
        if trainer.global_step % 10:
            return False
        return trainer.strategy.reduce_boolean_decision(self._stop_asked, all=False)


def last_saved(trainer: L.Trainer) -> tuple[Path, int] | None:
    """The ``last.ckpt`` of this run, or else what it was resumed from, and its step; None if there is neither."""
    wait_for_saves(trainer)
    paths = [callback.path for callback in trainer.checkpoint_callbacks if isinstance(callback, LastCheckpoint)]
    if trainer.ckpt_path is not None:
        paths.append(Path(trainer.ckpt_path))
    path = next((path for path in paths if path.exists()), None)
    return None if path is None else (path, int(Saved(path).content["global_step"]))


class BestCheckpoint(ModelCheckpoint):
    """Keeps ``checkpoints/best.ckpt``, the state with the lowest ``val/loss``; a loss that is not finite is not one.

    A run that is resumed in a new folder takes over the best checkpoint up to that step, under a second name.
    """

    def __init__(self) -> None:
        super().__init__(filename="best", monitor="val/loss", mode="min", save_top_k=1, enable_version_counter=False)
        self._before: dict[str, Any] | None = None

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if state_dict["dirpath"] == self.dirpath:
            super().load_state_dict(state_dict)
        else:
            self._before = state_dict

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        before, self._before = self._before, None
        if before is not None and before["best_model_path"]:
            self._take_over(trainer, Path(before["best_model_path"]), before["best_model_score"])

    def _take_over(self, trainer: L.Trainer, earlier: Path, loss: Tensor) -> None:
        """Make another run's best checkpoint this run's, if it is still there and of no step after this run's start."""
        if not earlier.exists() or Saved(earlier).content["global_step"] > trainer.global_step:
            say(f"{earlier} is gone or of a later step; best.ckpt begins anew")
            return
        assert self.dirpath is not None
        path = Path(self.dirpath) / f"best{self.FILE_EXTENSION}"
        if trainer.is_global_zero and not (path.exists() and path.samefile(earlier)):
            try:
                take_over(earlier, path)
            except OSError as error:
                raise WorkError(f"{earlier} cannot be taken over: {error.strerror}") from None
        trainer.strategy.barrier()
        self.best_model_path = self.kth_best_model_path = str(path)
        self.best_k_models = {str(path): loss}
        self.best_model_score = self.kth_value = loss

    def check_monitor_top_k(self, trainer: L.Trainer, current: Tensor | None = None) -> bool:
        """Whether ``current``, which is the same on every process, is finite and the lowest so far."""
        if current is None or not bool(torch.isfinite(current)):
            return False
        return super().check_monitor_top_k(trainer, current)
