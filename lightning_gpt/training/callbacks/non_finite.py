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
from lightning_gpt.checkpoint_file import write_checkpoint
from lightning_gpt.console import say
from lightning_gpt.data.batches import plain
from lightning_gpt.errors import WorkError
from lightning_gpt.models import LanguageModel
from lightning_gpt.models.record import Watch, watching
from lightning_gpt.parallel.strategy import MeshStrategy, gradient_norm
from lightning_gpt.saving import first_non_finite
from lightning_gpt.training.callbacks.checkpoints import last_saved
from lightning_gpt.training.callbacks.step_losses import StepLosses
from lightning_gpt.training.module import LanguageModule

Action = Literal["stop", "skip", "rewind"]
_MOST_IN_A_ROW = 10


class _Step:
    """An optimizer step that is about to be taken, with the micro-batches that it is made of.

    Args:
        number: 1 is the run's first.
        losses: Of this process's micro-batches, in nats.
        batches: The micro-batches, each with its number in the epoch.
        bad: 1.0 if a loss or the gradient of any process is not finite, else 0.0; on the device.
    """

    def __init__(self, number: int, losses: Tensor, batches: list[tuple[Any, int]], bad: Tensor) -> None:
        self.number = number
        self.losses = losses
        self.batches = batches
        self.bad = bad
        self._sent = bad
        self._event: torch.cuda.Event | None = None

    def send(self) -> None:
        """Start to copy ``bad`` to the CPU, without waiting."""
        self._sent = self.bad.to("cpu", non_blocking=True)
        if self.bad.is_cuda:
            self._event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._event.record()

    def arrived(self) -> bool:
        """Whether the step is bad; waits for the copy only, and not for work that the device was given since."""
        if self._event is not None:
            self._event.synchronize()
        return bool(self._sent)

    def found(self, trainer: L.Trainer) -> str:
        """What is wrong with it, the same on every process."""
        loss = float(trainer.strategy.reduce(self.losses.mean(), reduce_op="mean"))
        return (
            f"the loss is {loss:.4f} and the gradient is not finite" if math.isfinite(loss) else f"the loss is {loss}"
        )


def _can_skip_steps(optimizer: torch.optim.Optimizer) -> bool:
    """Whether the optimizer leaves out a step on the GPU by itself, told by a tensor there: fused AdamW only."""
    return isinstance(optimizer, torch.optim.AdamW) and all(
        group["fused"] and group["params"][0].is_cuda for group in optimizer.param_groups
    )


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

    With ``stop`` and fused AdamW, a GPU is not waited for: the flag stays on it, where the optimizer leaves out a bad
    step and all later ones, and is read one step later. Everything else waits for the flag at every step.

    Place it after :class:`Spikes`: a step that is left out already is not checked.

    Args:
        action: What to do.
    """

    def __init__(self, action: Action = "stop") -> None:
        self.action = action
        self._in_a_row = 0
        self._batches: list[tuple[Any, int]] = []
        self._losses = StepLosses()
        self._unread: _Step | None = None

    def state_dict(self) -> dict[str, Any]:
        return {"in_a_row": self._in_a_row}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._in_a_row = state_dict["in_a_row"]

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._batches.append((batch, batch_idx))

    def on_before_backward(self, trainer: L.Trainer, pl_module: L.LightningModule, loss: Tensor) -> None:
        self._losses.add(trainer, loss)

    def on_before_optimizer_step(
        self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        losses, batches, self._batches = self._losses.take(), self._batches, []
        parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        if all(parameter.grad is None for parameter in parameters):
            return  # another callback has left the step out
        finite = losses.isfinite().all()
        if trainer.precision != "16-mixed":
            finite = finite & gradient_norm(trainer.strategy, parameters).isfinite().to(finite.device)
        bad = (~finite).float()
        if trainer.world_size > 1:
            reduced = trainer.strategy.reduce(bad, reduce_op="sum")
            assert isinstance(reduced, Tensor)
            bad = (reduced > 0).float()
        step = _Step(trainer.global_step + 1, losses, batches, bad)
        if self.action == "stop" and _can_skip_steps(optimizer):
            if self._unread is not None:
                step.bad = torch.maximum(step.bad, self._unread.bad)  # once bad, the weights stay as they were
            optimizer.found_inf = step.bad  # type: ignore[attr-defined]
            step.send()
            before, self._unread = self._unread, step
            self._read(trainer, pl_module, before)
        elif bool(step.bad):
            self._in_a_row += 1
            self._act(trainer, pl_module, optimizer, step)
        else:
            self._in_a_row = 0

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        self._read_last(trainer, pl_module)  # stops before anything is written

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._read_last(trainer, pl_module)

    def _read_last(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        last, self._unread = self._unread, None
        self._read(trainer, pl_module, last)

    def _read(self, trainer: L.Trainer, pl_module: L.LightningModule, step: "_Step | None") -> None:
        """Stop if the step, whose weights and optimizer state did not change then, was bad."""
        if step is not None and step.arrived():
            self._stop(trainer, pl_module, step, gradients_are_its_own=False)

    def _act(
        self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: torch.optim.Optimizer, step: "_Step"
    ) -> None:
        """Stop, skip the step, or rewind."""
        saved = last_saved(trainer) if self.action == "rewind" else None
        gives_up = self._in_a_row > _MOST_IN_A_ROW
        if self.action == "stop" or gives_up or (self.action == "rewind" and saved is None):
            after = f", after {_MOST_IN_A_ROW} such steps in a row" if gives_up else ""
            self._stop(trainer, pl_module, step, gradients_are_its_own=True, after=after)
        elif saved is not None:
            _restore(trainer, pl_module, saved[0])
            done = f"weights and optimizer are again those of step {saved[1]:,}"
            say(f"step {step.number:,}: {step.found(trainer)}; {done}")
        else:
            say(f"step {step.number:,}: {step.found(trainer)}; step skipped")
        if isinstance(pl_module, LanguageModule):
            pl_module.forget_non_finite()
        # a step without gradients changes neither weights nor optimizer state
        optimizer.zero_grad(set_to_none=True)

    def _stop(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        step: "_Step",
        gradients_are_its_own: bool,
        after: str = "",
    ) -> None:
        """Save the batch, find where it goes wrong, and end the run with the same message on every process."""
        message = f"step {step.number} was not taken: {step.found(trainer)}{after}"
        losses, batches = step.losses, step.batches
        own_is_bad = trainer.strategy.all_gather((~losses.isfinite()).any().float()).reshape(-1)
        culprit = int(own_is_bad.argmax())  # the first process with such a loss; 0 if only gradients are not finite
        state, folder = _whole_state(trainer), trainer.log_dir or trainer.default_root_dir
        said = ""
        spread = isinstance(pl_module, LanguageModule) and pl_module.is_spread
        copy = pl_module.whole_model() if isinstance(pl_module, LanguageModule) and spread else None
        if trainer.global_rank == culprit:
            where = _where(trainer, pl_module, step, gradients_are_its_own and not spread, copy)
            path = Path(folder) / "non_finite" / f"step_{step.number}.ckpt"
            said = f"; first not finite: {where}" if where else ""
            said += f"; the batch is saved in {path}"
            content: dict[str, Any] = {
                "step": step.number,
                "process": trainer.global_rank,
                "micro_batches": [plain(move_data_to_device(batch, torch.device("cpu"))) for batch, _ in batches],
                "losses": losses.tolist(),
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


def _whole_state(trainer: L.Trainer) -> dict[str, Any]:
    """The weights as one process has them; all processes must call it, and the first one has them."""
    strategy = trainer.strategy
    return strategy.whole_state() if isinstance(strategy, MeshStrategy) else strategy.lightning_module_state_dict()


def _restore(trainer: L.Trainer, pl_module: L.LightningModule, path: Path) -> None:
    """Load weights and optimizer state of a checkpoint; everything else continues."""
    content = trainer.strategy.load_checkpoint(path)
    trainer.strategy.load_model_state_dict(content, strict=pl_module.strict_loading)
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, WeightAveraging):
            callback.on_load_checkpoint(trainer, pl_module, content)
    trainer.strategy.load_optimizer_state_dict(content)


def _where(
    trainer: L.Trainer,
    pl_module: L.LightningModule,
    step: _Step,
    gradients_are_its_own: bool,
    copy: LanguageModel | None,
) -> str | None:
    """The first place where a value is not finite: a weight, an intermediate, or the gradient of a weight.

    Where each process has a part of the model only, ``copy`` is a whole one, and gradients are not looked at.
    """
    weight = first_non_finite(dict((copy or pl_module).named_parameters()))
    if weight is not None:
        return f"the weight {weight}"
    bad = [batch for batch, loss in zip(step.batches, step.losses.isfinite().tolist(), strict=True) if not loss]
    if bad and isinstance(pl_module, LanguageModule):
        watch = _FirstNonFinite()
        model = pl_module.model if copy is None else copy.train()
        with torch.no_grad(), trainer.precision_plugin.train_step_context(), watching(model, watch):
            pl_module.rerun(*bad[0], model)
        return watch.found
    if not gradients_are_its_own:
        return None
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
