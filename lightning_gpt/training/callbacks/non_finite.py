"""Stopping at, skipping, or rewinding from optimizer steps whose loss or gradient is not finite."""

import math
from pathlib import Path
from typing import Any, Literal

import lightning as L
import torch
from lightning.fabric.utilities import move_data_to_device
from lightning.pytorch.callbacks import Callback, WeightAveraging
from torch import Tensor

from lightning_gpt.checkpoint import MODEL_KEY
from lightning_gpt.checkpoint_file import read_checkpoint, write_checkpoint
from lightning_gpt.console import say
from lightning_gpt.errors import WorkError
from lightning_gpt.models.record import Watch, watching
from lightning_gpt.training.callbacks.checkpoints import last_saved
from lightning_gpt.training.checkpoint_io import first_non_finite
from lightning_gpt.training.module import LanguageModule

Action = Literal["stop", "skip", "rewind"]
_MOST_IN_A_ROW = 10


class NonFinite(Callback):
    """Checks that loss and gradient are finite before each optimizer step is taken, on every process alike.

    With fp16 only the loss is checked: its gradients overflow now and then, and the scaler skips those steps itself.

    - ``stop`` ends the run with :class:`~lightning_gpt.errors.WorkError`. Its message names the step, the first module
      where a value that is not finite appears when the batch is run again, and the file where the batch is saved
      together with the weights: ``non_finite/step_N.ckpt`` in the run's folder.
    - ``skip`` leaves the step out: its rows are read; weights and optimizer state do not change.
    - ``rewind`` also restores weights and optimizer state from ``last.ckpt``. The data and the schedule go on, so that
      the run is the one resumed from that checkpoint with ``spikes.skip_steps`` up to this step (as in Chowdhery et
      al. 2022, 2204.02311, section 5.1).

    ``skip`` and ``rewind`` stop as well after ten such steps in a row.

    Args:
        action: What to do.
    """

    def __init__(self, action: Action = "stop") -> None:
        self.action = action
        self._in_a_row = 0
        self._batches: list[tuple[Any, int]] = []
        self._losses: list[Tensor] = []

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._batches.append((batch, batch_idx))

    def on_before_backward(self, trainer: L.Trainer, pl_module: L.LightningModule, loss: Tensor) -> None:
        self._losses.append(loss.detach())

    def on_before_optimizer_step(
        self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        losses, batches = torch.stack(self._losses), self._batches
        self._losses, self._batches = [], []
        finite = losses.isfinite().all()
        if trainer.precision != "16-mixed":
            gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
            finite = finite & torch.nn.utils.get_total_norm(gradients).isfinite().to(finite.device)
        if trainer.world_size > 1:
            finite = trainer.strategy.reduce((~finite).float(), reduce_op="sum") == 0
        if bool(finite):
            self._in_a_row = 0
            return
        step = trainer.global_step + 1
        self._in_a_row += 1
        loss = float(trainer.strategy.reduce(losses.sum(), reduce_op="mean"))
        found = f"the loss is {loss}"
        if math.isfinite(loss):
            found = f"the loss is {loss:.4f} and the gradient is not finite"
        saved = last_saved(trainer)
        if self.action == "stop" or self._in_a_row > _MOST_IN_A_ROW or (self.action == "rewind" and saved is None):
            self._stop(trainer, pl_module, f"step {step} was not taken: {found}", losses, batches)
        elif self.action == "rewind" and saved is not None:
            _restore(trainer, pl_module, saved[0])
            say(f"step {step:,}: {found}; weights and optimizer are again those of step {saved[1]:,}")
        else:
            say(f"step {step:,}: {found}; step skipped")
        # a step without gradients changes neither weights nor optimizer state
        optimizer.zero_grad(set_to_none=True)

    def _stop(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        message: str,
        losses: Tensor,
        batches: list[tuple[Any, int]],
    ) -> None:
        """Save the batch, find where it goes wrong, and end the run with the same message on every process."""
        own_is_bad = trainer.strategy.all_gather((~losses.isfinite()).any().float()).reshape(-1)
        culprit = int(own_is_bad.argmax())  # the first process with such a loss; 0 if only gradients are not finite
        state, folder = trainer.strategy.lightning_module_state_dict(), trainer.log_dir or trainer.default_root_dir
        said = ""
        if trainer.global_rank == culprit:
            where = _where(trainer, pl_module, losses, batches)
            path = Path(folder) / "non_finite" / f"step_{trainer.global_step + 1}.ckpt"
            said = f"; first not finite: {where}" if where else ""
            said += f"; the batch is saved in {path}"
            content: dict[str, Any] = {
                "step": trainer.global_step + 1,
                "process": trainer.global_rank,
                "micro_batches": [move_data_to_device(batch, torch.device("cpu")) for batch, _ in batches],
                "losses": (losses * trainer.accumulate_grad_batches).tolist(),
            }
            if isinstance(pl_module, LanguageModule):
                content[MODEL_KEY] = pl_module.model.describe()
            if first_non_finite(state) is None:
                content["state_dict"] = state
            write_checkpoint(content, path)
        message += trainer.strategy.broadcast(said, src=culprit)
        saved = last_saved(trainer)
        if saved is None:
            raise WorkError(f"{message}; no checkpoint was saved before it")
        raise WorkError(f"{message}; the last good checkpoint, of step {saved[1]}, is {saved[0]}")


def _restore(trainer: L.Trainer, pl_module: L.LightningModule, path: Path) -> None:
    """Load weights and optimizer state of a checkpoint; everything else continues."""
    content = read_checkpoint(path, mmap=False)
    trainer.strategy.load_model_state_dict(content, strict=pl_module.strict_loading)
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, WeightAveraging):
            callback.on_load_checkpoint(trainer, pl_module, content)
    trainer.strategy.load_optimizer_state_dict(content)


def _where(
    trainer: L.Trainer, pl_module: L.LightningModule, losses: Tensor, batches: list[tuple[Any, int]]
) -> str | None:
    """The first place where a value is not finite: a weight, an intermediate, or the gradient of a weight."""
    weight = first_non_finite(dict(pl_module.named_parameters()))
    if weight is not None:
        return f"the weight {weight}"
    bad = [batch for batch, loss in zip(batches, losses.isfinite().tolist(), strict=True) if not loss]
    if bad and isinstance(pl_module, LanguageModule):
        watch = _FirstNonFinite()
        with torch.no_grad(), trainer.precision_plugin.train_step_context(), watching(pl_module.model, watch):
            pl_module.rerun(*bad[0])
        return watch.found
    gradients = {name: p.grad for name, p in pl_module.named_parameters() if p.grad is not None}
    # the backward pass goes from the last weight to the first
    gradient = first_non_finite(dict(reversed(gradients.items())))
    return None if gradient is None else f"the gradient of {gradient}"


class _FirstNonFinite(Watch):
    """Keeps the name of the first intermediate with a NaN or +∞; −∞ is how attention masks its scores."""

    def __init__(self) -> None:
        super().__init__(None, {})
        self.found: str | None = None

    def __call__(self, name: str, value: Tensor) -> Tensor:
        if self.found is None and bool((value.isnan() | value.isposinf()).any()):
            self.found = name
        return value
