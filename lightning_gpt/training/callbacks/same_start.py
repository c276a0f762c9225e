"""Processes that were started with different configurations, code or versions are refused."""

import platform
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning as L
import torch
import torch.distributed as dist
from lightning.pytorch.callbacks import Callback
from xxhash import xxh3_128

from lightning_gpt.errors import CallError
from lightning_gpt.trust import trusted_names

_MOST_NAMED = 3


class SameStart(Callback):
    """Compares what all processes were started with, before the first step.

    Args:
        configuration: The options of this process, by name.
    """

    def __init__(self, configuration: Mapping[str, Any]) -> None:
        self.configuration = {name: repr(value) for name, value in configuration.items()}

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Compare.

        Raises:
            CallError: A process differs from the first one; raised in all of them.
        """
        if trainer.world_size == 1 or not dist.is_initialized():
            return
        summed = xxh3_128(repr(sorted(self.configuration.items())).encode()).hexdigest()
        own = {"configuration": summed, "code": code_sum(), **_versions()}
        first, rank, there = self._first_that_differs(own)
        if rank is None:
            return
        differing = [name for name in own if first[name] != there[name]]
        if differing == ["configuration"]:
            options, _, others = self._first_that_differs(self.configuration)
            names = [name for name in {**options, **others} if options.get(name) != others.get(name)]
            said = "; ".join(
                f"{name} is {others.get(name)} and not {options.get(name)}" for name in names[:_MOST_NAMED]
            )
            raise CallError(f"process {rank} was started with a different configuration from process 0: {said}")
        said = "; ".join(
            "other code of lightning_gpt or of a trusted module" if name == "code" else f"{name} {there[name]}"
            for name in differing
        )
        raise CallError(f"process {rank} was started differently from process 0: {said}")

    def _first_that_differs(self, own: Mapping[str, str]) -> tuple[dict[str, str], int | None, dict[str, str]]:
        """What the first process has, and the first that has something else."""
        gathered: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(gathered, dict(own))
        first = gathered[0]
        return next(((first, rank, each) for rank, each in enumerate(gathered) if each != first), (first, None, first))


def code_sum() -> str:
    """A checksum of the code of this package and of the trusted modules."""
    package = Path(__file__).parents[2]
    files = sorted(package.rglob("*.py"), key=lambda file: str(file.relative_to(package)))
    modules = (sys.modules.get(name) for name in trusted_names())
    files += [Path(module.__file__) for module in modules if module is not None and module.__file__ is not None]
    summed = xxh3_128()
    for file in files:
        summed.update(file.name.encode())
        summed.update(file.read_bytes())
    return summed.hexdigest()


def _versions() -> dict[str, str]:
    return {"torch": torch.__version__, "lightning": L.__version__, "python": platform.python_version()}
