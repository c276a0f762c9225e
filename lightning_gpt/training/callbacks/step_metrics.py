"""The training curves, by logged optimizer step."""

import time
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from lightning_gpt.data.batches import Batch
from lightning_gpt.data.datamodule import TextData
from lightning_gpt.data.share import data_place
from lightning_gpt.parallel.strategy import gradient_norm
from lightning_gpt.perplexity import perplexity
from lightning_gpt.planning.flops import training_flops_per_token
from lightning_gpt.training.module import LanguageModule
from lightning_gpt.training.peak import peak_flops, precision_dtype


def rows_drawn(data: object) -> dict[str, float]:
    """``data/rows/<source>``: the rows trained on so far, by source."""
    if not isinstance(data, TextData) or data.mark is None:
        return {}
    return {f"data/rows/{name}": float(state["rows_taken"]) for name, state in data.mark.sources.items()}


class StepMetrics(Callback):
    """Logs the training curves every ``log_every_n_steps`` optimizer steps of the Trainer.

    - ``train/loss`` and ``train/perplexity``: mean over the micro-batches since the last logged step, on the first
      process.
    - ``train/lr``: the learning rate of the next step.
    - ``train/grad_norm``: the norm of the logged step's gradient, before clipping.
    - ``train/tokens_per_second``: over all processes, without the time in validation and before the first step.
    - ``train/mfu``: model FLOPs utilisation, Chowdhery et al. 2022 (2204.02311), section 4.1: the FLOPs of the matrix
      products by formula (:func:`~lightning_gpt.planning.flops.training_flops_per_token`) as a share of the devices'
      peak (:func:`~lightning_gpt.training.peak.peak_flops`).
    - ``data/rows/<source>``: the rows drawn from each source so far.
    """

    def __init__(self) -> None:
        self.latest: dict[str, float] = {}
        self._losses: list[Tensor] = []

    def state_dict(self) -> dict[str, Any]:
        return {"losses": [float(loss) for loss in self._losses]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._losses = [torch.tensor(loss) for loss in state_dict["losses"]]

    def _start_clock(self) -> None:
        self._tokens = 0
        self._since = time.perf_counter()
        self._paused_at: float | None = None

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._step = trainer.global_step
        self._flops_share = _share_of_a_token_per_second(trainer, pl_module)
        self._losses = [loss.to(pl_module.device) for loss in self._losses]
        self._start_clock()
        self._paused_at = self._since

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._paused_at = time.perf_counter()

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Batch, batch_idx: int
    ) -> None:
        if self._paused_at is not None:  # here, since other callbacks work at the start and at the end of a validation
            self._since += time.perf_counter() - self._paused_at
            self._paused_at = None

    def on_before_optimizer_step(
        self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        if self._logs(trainer, trainer.global_step + 1):
            self._grad_norm = gradient_norm(trainer.strategy, pl_module.parameters())

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        if not logged_every(trainer):
            return
        # Lightning has divided the loss by the number of micro-batches
        self._losses.append(outputs["loss"].detach() * trainer.accumulate_grad_batches)
        self._tokens += batch["targets"].numel() * data_place(trainer)[1]
        if trainer.global_step == self._step:
            return
        self._step = trainer.global_step
        if not self._logs(trainer, self._step):
            return
        loss = float(torch.stack(self._losses).mean())
        tokens_per_second = self._tokens / (time.perf_counter() - self._since)
        self.latest = {
            "train/loss": loss,
            "train/perplexity": perplexity(loss),
            "train/lr": float(trainer.lr_scheduler_configs[0].scheduler.get_last_lr()[0]),
            "train/grad_norm": float(self._grad_norm),
            "train/tokens_per_second": tokens_per_second,
        }
        if self._flops_share is not None:
            self.latest["train/mfu"] = tokens_per_second * self._flops_share
        values = self.latest | rows_drawn(trainer.datamodule)  # type: ignore[attr-defined]
        for logger in trainer.loggers:
            logger.log_metrics(values, step=self._step)
        self._losses = []
        self._start_clock()

    @staticmethod
    def _logs(trainer: L.Trainer, step: int) -> bool:
        every = logged_every(trainer)
        return bool(every) and step % every == 0


def logged_every(trainer: L.Trainer) -> int:
    """The number of steps from one logged step to the next; 0 if the Trainer logs nothing."""
    return getattr(trainer, "log_every_n_steps", 0)


def _share_of_a_token_per_second(trainer: L.Trainer, pl_module: L.LightningModule) -> float | None:
    """The share of all devices' peak that one token per second takes; None for a model of another package."""
    if not isinstance(pl_module, LanguageModule):
        return None
    flops = training_flops_per_token(pl_module.model_to_count(), pl_module.model.config.block_size)
    peak = peak_flops(pl_module.device, precision_dtype(str(trainer.precision)))
    return flops / (peak * trainer.world_size)
