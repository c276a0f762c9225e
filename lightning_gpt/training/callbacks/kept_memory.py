"""Memory of a training step that the next step uses again."""

from contextlib import ExitStack

import lightning as L
from lightning.pytorch.callbacks import Callback

from lightning_gpt.kept_memory import freed_memory_kept


class KeptMemory(Callback):
    """On a CPU, keeps freed memory for the next step: :func:`~lightning_gpt.kept_memory.freed_memory_kept`."""

    def __init__(self) -> None:
        self._kept = ExitStack()

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if trainer.strategy.root_device.type == "cpu":
            self._kept.enter_context(freed_memory_kept())

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self._kept.close()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self._kept.close()
