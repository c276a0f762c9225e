"""A stop that is asked for inside an optimizer step waits for its end, so that a resumed run loses nothing."""

import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch

from lightning_gpt.training.callbacks import EarlyEnd, LastCheckpoint
from tests.training.toy import Toy, fit

LAST = "checkpoints/last.ckpt"


class AsksAt(L.Callback):
    """Asks for a stop after a micro-batch of the epoch."""

    def __init__(self, micro_batch: int) -> None:
        self.micro_batch = micro_batch

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if batch_idx == self.micro_batch:
            trainer.should_stop = True


class Slow(Toy):
    """Its second micro-batch takes longer than the tests' ``max_time``."""

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        if batch_idx == 1:
            time.sleep(2.5)
        return super().training_step(batch, batch_idx)


LOSSES = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]  # two steps of three micro-batches, and one of what is left


@pytest.mark.parametrize(("micro_batch", "read", "steps"), [(1, 3, 1), (2, 3, 1), (3, 6, 2), (6, 7, 3)])
def test_a_callback_s_stop_waits_for_the_step(micro_batch: int, read: int, steps: int, tmp_path: Path) -> None:
    fit(Toy(LOSSES), tmp_path, AsksAt(micro_batch), LastCheckpoint(), accumulate_grad_batches=3)
    saved = torch.load(tmp_path / LAST, weights_only=True)
    assert saved["global_step"] == steps
    assert saved["loops"]["fit_loop"]["epoch_loop.batch_progress"]["total"]["ready"] == read
    assert float(saved["state_dict"]["weight"]) == pytest.approx(-0.1 * sum(LOSSES[:read]) / 3)


def test_max_time_waits_for_the_step_and_a_resumed_run_says_that_it_is_over(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = {"accumulate_grad_batches": 3, "max_time": timedelta(seconds=2)}
    fit(Slow(LOSSES), tmp_path, EarlyEnd(), LastCheckpoint(), **flags)
    assert torch.load(tmp_path / LAST, weights_only=True)["global_step"] == 1
    assert "stopped after step 1 of 3: max_time is over" in capsys.readouterr().err
    fit(Toy(LOSSES), tmp_path, EarlyEnd(), LastCheckpoint(), resume=tmp_path / LAST, **flags)
    assert "nothing to train: the checkpoint is of step 1, max_time is over" in capsys.readouterr().err
