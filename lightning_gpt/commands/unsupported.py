"""Lightning's options and callbacks that do not work in a run of this package: each is refused in one line."""

import inspect
import os
import re
from collections.abc import Iterable
from typing import Any

import torch
from jsonargparse import Namespace
from lightning import Trainer
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.pytorch.accelerators import AcceleratorRegistry
from lightning.pytorch.callbacks import (
    BatchSizeFinder,
    Callback,
    GradientAccumulationScheduler,
    LearningRateFinder,
    ModelCheckpoint,
    StochasticWeightAveraging,
    Timer,
)
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.strategies import ParallelStrategy
from torch.utils.tensorboard import SummaryWriter

from lightning_gpt.commands.call import class_at
from lightning_gpt.errors import CallError, shortened
from lightning_gpt.launch import restarts_need_another_store
from lightning_gpt.options import shown

_GPUS = ("cuda", "mps")
_REPLACED: dict[type[Callback], str] = {
    BatchSizeFinder: "it would train with another batch_size than config.yaml records; set data.batch_size",
    GradientAccumulationScheduler: "use --model.optimization.batch_warmup",
    LearningRateFinder: "compare values of model.optimization.lr in a study instead",
    StochasticWeightAveraging: "it would replace the learning-rate schedule; use --averaging.decay",
    Timer: "use --trainer.max_time",
}
"""Callbacks that cannot be used, each with the reason or what to use instead."""


def check_callbacks(callbacks: Iterable[Callback]) -> None:
    """Refuse callbacks of Lightning that would not do here what they say.

    Raises:
        CallError: If there is one.
    """
    for callback in callbacks:
        for refused, instead in _REPLACED.items():
            if isinstance(callback, refused):
                raise CallError(f"trainer.callbacks: {refused.__name__} cannot be used here: {instead}")
        if isinstance(callback, ModelCheckpoint) and callback.save_last:
            raise CallError(
                "trainer.callbacks: ModelCheckpoint with save_last would replace the run's own last.ckpt; "
                "leave save_last out (--checkpoints.every_n_steps says how often last.ckpt is saved)"
            )


def check_loggers(given: Any) -> None:
    """Refuse ``dict_kwargs`` that a logger would fail at: what is not in its constructor goes to another class.

    Args:
        given: The parsed option ``trainer.logger``.

    Raises:
        CallError: Neither class has the option.
    """
    for logger in given if isinstance(given, list) else [given]:
        options = logger.get("dict_kwargs") if isinstance(logger, Namespace) else None
        if not options:
            continue
        kind = class_at(logger.class_path)
        known = inspect.signature(kind).parameters
        if issubclass(kind, TensorBoardLogger):
            known = inspect.signature(SummaryWriter).parameters
        elif any(parameter.kind is parameter.VAR_KEYWORD for parameter in known.values()):
            continue
        for name in options:
            if name not in known:
                raise CallError(f"trainer.logger: {kind.__name__} has no option {name!r} (given under dict_kwargs)")


def check_accelerator(given: Any) -> None:
    """Refuse an accelerator that this machine does not have.

    Args:
        given: The parsed option ``trainer.accelerator``.

    Raises:
        CallError: The machine has no such accelerator; the message names those that it has.
    """
    if not isinstance(given, str) or given in ("auto", "cpu"):
        return
    here = [name for name, each in AcceleratorRegistry.items() if each["accelerator"].is_available()]
    gpus = [name for name in here if name in _GPUS]
    if given in here or (given == "gpu" and gpus):
        return
    lacks = ", but torch finds no GPU on this machine" if given in ("gpu", *_GPUS) and not gpus else ""
    works = ["auto", *(["gpu"] if gpus else []), *here]
    raise CallError(f"trainer.accelerator is {shown(given)}{lacks}; allowed here: {', '.join(works)}")


def check_precision(given: Any, accelerator: Any) -> None:
    """Refuse float64 on an Apple GPU.

    Args:
        given: The parsed option ``trainer.precision``.
        accelerator: The parsed option ``trainer.accelerator``.

    Raises:
        CallError: The run would be on one.
    """
    asked = accelerator == "mps" or (accelerator in ("auto", "gpu") and not torch.cuda.is_available())
    if str(given) in ("64", "64-true") and asked and torch.backends.mps.is_available():
        raise CallError(
            f"trainer.precision is {shown(given)}, but Apple's GPU (mps) has no float64: use 32-true, or "
            f"--trainer.accelerator cpu"
        )


def check_devices(given: Any, here: int) -> None:
    """Refuse another number of devices than torchrun has started processes on this node.

    Args:
        given: The parsed option ``trainer.devices``.
        here: The processes.

    Raises:
        CallError: They differ.
    """
    asked = len(given) if isinstance(given, list) else given
    if str(asked) not in ("auto", "-1", str(here)):
        raise CallError(
            f"trainer.devices is {given}, but torchrun has started {here} on this node: leave trainer.devices out"
        )


def check_restarts() -> None:
    """Refuse a torchrun whose restarts would wait for processes that have ended.

    Raises:
        CallError: Its restarts share a store with what was before.
    """
    if restarts_need_another_store():
        raise CallError(
            "torchrun --max-restarts would start processes that wait for the ones that they replace: set "
            "TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 in torchrun's environment, or use --max-restarts 0"
        )


def check_nodes(trainer: Trainer) -> None:
    """Refuse to wait for other nodes that nobody starts.

    Raises:
        CallError: If there are several nodes, and neither a launcher nor the environment says how to reach the first.
    """
    strategy = trainer.strategy
    alone = isinstance(strategy, ParallelStrategy) and isinstance(strategy.cluster_environment, LightningEnvironment)
    if trainer.num_nodes > 1 and alone and "MASTER_ADDR" not in os.environ:
        raise CallError(
            f"trainer.num_nodes is {trainer.num_nodes}, but nothing starts the other nodes: use torchrun or srun, or "
            f"run the command on each node with MASTER_ADDR, MASTER_PORT and NODE_RANK set"
        )


def refused(error: BaseException) -> CallError:
    """What Lightning says against the call, as one line."""
    return CallError(shortened(f"trainer: {error}", 280))


def refused_value(error: ValueError) -> CallError | None:
    """The line for what Lightning and the config parser refuse with a ``ValueError``; None for any other of them."""
    missing = re.search(r"given class_path '([\w.]+)':\s+Requirement '([^']+)' not met", str(error))
    if missing is not None:
        return CallError(f"{missing[1].rpartition('.')[2]} needs the package {missing[2]}, which is not installed")
    return refused(error) if str(error).lstrip().startswith("`val_check_interval`") else None
