"""A context that lasts as long as a run."""

from abc import ABC, abstractmethod
from contextlib import AbstractContextManager
from typing import Generic, TypeVar

import lightning as L
from lightning.pytorch.callbacks import Callback

C = TypeVar("C", bound=AbstractContextManager[object])


class AroundRun(Callback, ABC, Generic[C]):
    """Base class of callbacks that keep a context around a run on a CPU, until it ends or fails."""

    def __init__(self) -> None:
        self._context: C | None = None

    @abstractmethod
    def _new_context(self) -> C:
        """The context of a run, to be entered."""

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if trainer.strategy.root_device.type == "cpu" and self._context is None:
            self._context = self._new_context()
            self._context.__enter__()

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self._end()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self._end()

    def _end(self) -> None:
        context, self._context = self._context, None
        if context is not None:
            context.__exit__(None, None, None)
