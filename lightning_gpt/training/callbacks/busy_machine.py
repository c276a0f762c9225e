"""Training beside other programs."""

import lightning as L
from lightning.pytorch.callbacks import Callback

from lightning_gpt.console import say
from lightning_gpt.waiting import Waiting


class BusyMachine(Callback):
    """On a CPU, lets threads sleep while they wait for each other where other programs take cores, and says so.

    Each process of a run chooses for itself. The number of threads stays as it is, and so do results, to the bit.
    ``OMP_WAIT_POLICY`` and ``GOMP_SPINCOUNT`` in the environment are obeyed: then nothing is chosen.
    """

    def __init__(self) -> None:
        self._waiting: Waiting | None = None

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if trainer.strategy.root_device.type == "cpu" and self._waiting is None:
            self._waiting = Waiting()
            self._waiting.__enter__()

    def on_train_batch_end(self, trainer: L.Trainer, *args: object) -> None:
        self._say_news()

    def on_validation_batch_end(self, trainer: L.Trainer, *args: object) -> None:
        self._say_news()

    def _say_news(self) -> None:
        news = None if self._waiting is None else self._waiting.news()
        if news is not None:
            say(news)

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self._end()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self._end()

    def _end(self) -> None:
        if self._waiting is not None:
            self._waiting.__exit__(None, None, None)
            self._waiting = None
