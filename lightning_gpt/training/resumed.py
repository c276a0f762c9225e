"""The options of a resumed run: the config's, not those that the optimizer's restored state holds; what has changed."""

import dataclasses
from typing import Any

import lightning as L
import torch
from torch.optim.lr_scheduler import LambdaLR

from lightning_gpt.data.datamodule import TextData
from lightning_gpt.errors import CallError
from lightning_gpt.training.optim import Optimization

OPTIMIZATION_KEY = "lightning_gpt_optimization"
"""The entry of a checkpoint that records the options it was trained with."""

_FIXED = {
    "optimizer": "the checkpoint holds the state of the former",
    "mup": "it determines the initial weights",
    "batch_warmup": "it determines which rows each step has taken",
}
"""Options that a resumed run cannot change, and why."""

_GROUP_OPTIONS = ("initial_lr", "weight_decay", "betas", "momentum", "nesterov", "newton_schulz_steps")
"""What an optimizer's state restores although the config determines it; the rest (``fused``, ...) fits the state."""


def recorded(optimization: Optimization, trainer: L.Trainer, rows_per_step: int | None) -> dict[str, Any]:
    """The options as plain values by name, for a checkpoint and for comparison; those of Muon as ``muon.lr`` etc.

    Args:
        optimization: How the weights are trained.
        trainer: Whose flags are recorded that change what a step does.
        rows_per_step: Rows of an optimizer step over all processes; None if unknown.
    """
    clipping = trainer.gradient_clip_algorithm
    options: dict[str, Any] = {
        "max_steps": trainer.max_steps,
        "max_epochs": trainer.max_epochs,
        "rows_per_step": rows_per_step,
        "processes": trainer.world_size,
        "precision": str(trainer.precision),
        "gradient_clip_val": trainer.gradient_clip_val,
        "gradient_clip_algorithm": None if clipping is None else clipping.value,  # a checkpoint holds plain values only
    }
    for name, value in dataclasses.asdict(optimization).items():
        if name == "muon":
            options |= {f"muon.{key}": each for key, each in value.items()}
        else:
            options[name] = list(value) if isinstance(value, tuple) else value
    if optimization.optimizer != "muon":
        options = {name: value for name, value in options.items() if not name.startswith("muon.")}
    return options


def changes(was: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """What differs between the checkpoint's options and the config's, such as ``lr 0.001 (was 0.0003)``.

    Args:
        was: What :func:`recorded` returned for the checkpoint; one written before an option existed lacks it.
        now: What it returns for the config.

    Raises:
        CallError: If an option differs that a resumed run cannot change; the message says what to do.
    """
    for name, reason in _FIXED.items():
        if name in was and was[name] != now[name]:
            raise CallError(
                f"cannot resume: optimization.{name} changed from {was[name]} to {now[name]}, and {reason}; "
                f"set it back, or start a new run"
            )
    return [f"{name} {value} (was {was[name]})" for name, value in now.items() if name in was and value != was[name]]


def place(trainer: L.Trainer, device: torch.device, data: TextData | None) -> str:
    """Where a resumed run continues, and with what: step, file, rows of a step, device and precision.

    Args:
        trainer: With the restored step.
        device: That of the first process.
        data: What it reads; None if that is not a :class:`~lightning_gpt.data.datamodule.TextData`.
    """
    rows = "" if data is None else f"{data.step_rows} rows per step ({data.share.described()}), "
    return (
        f"resuming after step {trainer.global_step:,} of {trainer.estimated_stepping_batches:,} from "
        f"{trainer.ckpt_path}: {rows}{device.type}, precision {trainer.precision}"
    )


def group_options(optimizer: torch.optim.Optimizer) -> list[dict[str, Any]]:
    """The options of each parameter group that the config determines; call it after the schedule was built."""
    return [{key: group[key] for key in _GROUP_OPTIONS if key in group} for group in optimizer.param_groups]


def apply(options: list[dict[str, Any]], optimizer: torch.optim.Optimizer, schedule: LambdaLR) -> None:
    """Set an optimizer, whose state was restored, to the config's options, and the next step's learning rate.

    If nothing has changed, every value is the restored one, to the bit.

    Args:
        options: What :func:`group_options` returned before the state was restored.
        optimizer: The optimizer.
        schedule: Its learning-rate schedule, which is at the restored step already.
    """
    schedule.base_lrs = [each["initial_lr"] for each in options]
    rates = [
        base * factor(schedule.last_epoch) for base, factor in zip(schedule.base_lrs, schedule.lr_lambdas, strict=True)
    ]
    for group, each, rate in zip(optimizer.param_groups, options, rates, strict=True):
        group.update(each)
        group["lr"] = rate
    schedule._last_lr = rates
