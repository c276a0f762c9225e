"""Stopping at, or skipping, steps whose loss spikes."""

import math
import shlex
import statistics
from collections import deque
from typing import Annotated, Any, Literal

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from lightning_gpt.console import say
from lightning_gpt.errors import CallError, WorkError
from lightning_gpt.options import Count, Positive, Range, check_options
from lightning_gpt.training.callbacks.checkpoints import last_saved
from lightning_gpt.training.callbacks.step_losses import StepLosses
from lightning_gpt.trust import trusted_options

Action = Literal["stop", "skip"]
_MOST_SKIPPED_IN_A_ROW = 10


class Spikes(Callback):
    """Checks each optimizer step's loss before the step is taken.

    A spike is a loss that exceeds the mean over the last ``window`` steps by more than ``threshold`` standard
    deviations; a loss that is not finite is left to :class:`~lightning_gpt.training.callbacks.NonFinite`. A spike is
    found while the weights are still those of the previous step, and ``last.ckpt`` is older still. A run is exactly
    repeatable, so when resumed from there it meets the same spike, unless the steps around it are skipped with
    ``skip_steps``, as in Chowdhery et al. 2022 (2204.02311), section 5.1.

    Args:
        threshold: In standard deviations; when omitted, nothing is checked.
        window: Number of optimizer steps in the mean and standard deviation. Until half the window is filled, nothing
            is a spike.
        action: ``stop`` the run and name the last good checkpoint, or ``skip`` the step and continue; the run stops
            after ten skipped steps in a row.
        skip_steps: Pairs ``[first, last]`` of optimizer steps to skip (1 is the run's first). Their rows are read;
            weights, optimizer state and expert biases do not change.
    """

    def __init__(
        self,
        threshold: Positive | None = None,
        window: Annotated[int, Range(4, 2**20)] = 128,
        action: Action = "stop",
        skip_steps: list[tuple[Count, Count]] | None = None,
    ) -> None:
        check_options(Spikes.__init__, locals(), "spikes.")
        for first, last in skip_steps or ():
            if first > last:
                raise CallError(f"spikes.skip_steps has [{first}, {last}]; a pair is [first, last], counted from 1")
        self.threshold = threshold
        self.window = window
        self.action = action
        self.skip_steps = skip_steps or []
        self._before: deque[float] = deque(maxlen=window)
        self._skipped_in_a_row = 0
        self._losses = StepLosses()

    def state_dict(self) -> dict[str, Any]:
        return {"before": list(self._before), "skipped_in_a_row": self._skipped_in_a_row}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._before = deque(state_dict["before"], maxlen=self.window)
        self._skipped_in_a_row = state_dict["skipped_in_a_row"]

    def on_before_backward(self, trainer: L.Trainer, pl_module: L.LightningModule, loss: Tensor) -> None:
        if self.threshold is not None:
            self._losses.add(trainer, loss)

    def on_before_optimizer_step(
        self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        step = trainer.global_step + 1
        losses = None if self.threshold is None else self._losses.take()
        if any(first <= step <= last for first, last in self.skip_steps):
            _leave_out(optimizer)
        elif losses is not None:
            mean = trainer.strategy.reduce(losses.mean(), reduce_op="mean")
            if math.isfinite(mean):
                self._look(trainer, optimizer, step, float(mean))

    def _look(self, trainer: L.Trainer, optimizer: torch.optim.Optimizer, step: int, loss: float) -> None:
        """Stop or skip the step if it is a spike; then add its loss to the window."""
        found = self._spike(loss)
        self._skipped_in_a_row = self._skipped_in_a_row + 1 if found else 0
        if found and self._skipped_in_a_row > _MOST_SKIPPED_IN_A_ROW:
            self._stop(trainer, step, f"{found}, after {_MOST_SKIPPED_IN_A_ROW} skipped steps in a row")
        elif found and self.action == "stop":
            self._stop(trainer, step, found)
        if found:
            say(f"step {step:,}: {found}; step skipped")
            _leave_out(optimizer)
        self._before.append(loss)

    def _spike(self, loss: float) -> str | None:
        """What is wrong with the coming step; None if nothing is."""
        assert self.threshold is not None
        if len(self._before) < max(2, self.window // 2):
            return None
        mean, deviation = statistics.fmean(self._before), statistics.pstdev(self._before)
        if loss <= mean + self.threshold * deviation:
            return None
        away = (loss - mean) / deviation if deviation else math.inf
        return (
            f"the loss is {loss:.4f}, {away:.1f} standard deviations above {mean:.4f}, the mean of the last "
            f"{len(self._before)} steps (spikes.threshold is {self.threshold:g})"
        )

    def _stop(self, trainer: L.Trainer, step: int, found: str) -> None:
        message = f"step {step} was not taken: {found}"
        last = last_saved(trainer)
        if last is None:
            raise WorkError(f"{message}; no checkpoint was saved before it")
        path, saved = last
        if trainer.is_global_zero:
            skip = [*(list(pair) for pair in self.skip_steps), [saved + 1, step]]
            config, last_good = shlex.quote(str(path.parent.parent / "config.yaml")), shlex.quote(str(path))
            options = "".join(f" {shlex.quote(option)}" for option in trusted_options())
            say("to resume from there and skip the steps since")
            say(f"  lightning-gpt fit --config {config} --ckpt_path {last_good} --spikes.skip_steps '{skip}'{options}")
        raise WorkError(f"{message}; the last good checkpoint, of step {saved}, is {path}")


def _leave_out(optimizer: torch.optim.Optimizer) -> None:
    """Remove the gradients: a step without them changes neither weights nor optimizer state."""
    optimizer.zero_grad(set_to_none=True)
