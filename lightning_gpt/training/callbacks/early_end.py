"""Why a run ended before its last step."""

import lightning as L
from lightning.pytorch.callbacks import Callback, EarlyStopping, Timer

from lightning_gpt.console import say
from lightning_gpt.errors import CallError


class EarlyEnd(Callback):
    """Reports why ``EarlyStopping`` or ``max_time`` ended a run, and refuses to stop early by what is not measured."""

    def __init__(self) -> None:
        self._trains = False

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._trains = False
        if trainer.early_stopping_callbacks and not trainer.enable_validation:
            raise CallError(
                f"EarlyStopping looks at validations, and limit_val_batches {trainer.limit_val_batches} leaves them out"
            )

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._trains = True

    def on_sanity_check_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        measured = trainer.callback_metrics
        for callback in trainer.early_stopping_callbacks:
            if callback is not None and callback.strict and callback.monitor not in measured:
                raise CallError(
                    f"EarlyStopping: monitor is {callback.monitor!r}; the validation measures {', '.join(measured)}"
                )

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not trainer.should_stop:
            return
        told = _reasons(trainer)
        if told:
            say(f"stopped after step {trainer.global_step:,} of {_total(trainer)}: {told}")

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.ckpt_path is not None and not self._trains:
            limits = f"max_steps is {trainer.max_steps} and max_epochs is {trainer.max_epochs}"
            is_past = 0 <= trainer.max_steps < trainer.global_step
            why = _reasons(trainer) or f"{'past the step at which' if is_past else 'where'} this run ends ({limits})"
            say(f"nothing to train: the checkpoint is of step {trainer.global_step:,}, {why}")


def _reasons(trainer: L.Trainer) -> str:
    """Why callbacks asked the Trainer to stop; empty if none did."""
    reasons = [_reason(callback) for callback in trainer.callbacks]  # type: ignore[attr-defined]
    return "; ".join(reason for reason in reasons if reason)


def _total(trainer: L.Trainer) -> str:
    total = trainer.estimated_stepping_batches
    return "an unknown number" if total == float("inf") else f"{int(total):,}"


def _reason(callback: Callback) -> str:
    """Why ``callback`` asked the Trainer to stop; empty if it did not."""
    if isinstance(callback, EarlyStopping) and callback.stopping_reason_message:
        return "EarlyStopping: " + callback.stopping_reason_message.removesuffix(" Signaling Trainer to stop.")
    left = callback.time_remaining() if isinstance(callback, Timer) else None
    return "max_time is over" if left is not None and left <= 0 else ""
