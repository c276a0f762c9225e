"""Training beside other programs."""

import lightning as L

from lightning_gpt.console import say
from lightning_gpt.training.callbacks.around_run import AroundRun
from lightning_gpt.waiting import Waiting


class BusyMachine(AroundRun[Waiting]):
    """On a CPU, lets threads sleep while they wait for each other where other programs take cores, and says so.

    Each process of a run chooses for itself. The number of threads stays as it is, and so do results, to the bit.
    ``OMP_WAIT_POLICY`` and ``GOMP_SPINCOUNT`` in the environment are obeyed: then nothing is chosen.
    """

    def _new_context(self) -> Waiting:
        return Waiting()

    def on_train_batch_end(self, trainer: L.Trainer, *args: object) -> None:
        self._say_news()

    def on_validation_batch_end(self, trainer: L.Trainer, *args: object) -> None:
        self._say_news()

    def _say_news(self) -> None:
        news = None if self._context is None else self._context.news()
        if news is not None:
            say(news)
