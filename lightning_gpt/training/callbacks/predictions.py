"""The output of ``predict``: the model's losses and predictions on the test text, row by row."""

import math
from pathlib import Path
from typing import Any, TextIO

import lightning as L
from lightning.pytorch.callbacks import Callback

from lightning_gpt.console import say
from lightning_gpt.data.batches import Batch
from lightning_gpt.data.datamodule import TextData
from lightning_gpt.data.share import data_place
from lightning_gpt.json_text import to_json
from lightning_gpt.models.head import IGNORED
from lightning_gpt.parallel.strategy import MeshStrategy


class Predictions(Callback):
    """Writes ``predictions.jsonl``: each row's tokens, losses in nats and likeliest tokens.

    Of several processes, each that reads rows of its own writes a file. A loss that is not finite is null.
    """

    def __init__(self) -> None:
        self._file: TextIO | None = None
        self._not_finite = 0

    def on_predict_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        folder = Path(trainer.log_dir or trainer.default_root_dir)
        strategy, (rank, size) = trainer.strategy, data_place(trainer)
        if isinstance(strategy, MeshStrategy) and not strategy.is_first_of_share:
            return  # another process writes the same rows
        folder.mkdir(parents=True, exist_ok=True)
        suffix = f"-{rank}" if size > 1 else ""
        self._path = folder / f"predictions{suffix}.jsonl"
        self._file = self._path.open("w", encoding="utf-8")

    def on_predict_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        data = trainer.datamodule  # type: ignore[attr-defined]
        assert isinstance(data, TextData)
        if self._file is None:
            return
        rows = zip(outputs["targets"].tolist(), outputs["nll"].tolist(), outputs["predicted"].tolist(), strict=True)
        for targets, losses, predicted in rows:
            kept = [position for position, target in enumerate(targets) if target != IGNORED]
            if not kept:
                continue
            row: dict[str, Any] = {
                "text": data.tokenizer.decode(targets[k] for k in kept),
                "loss": sum(losses[k] for k in kept) / len(kept),
                "token_losses": [round(losses[k], 4) for k in kept],
                "targets": [targets[k] for k in kept],
                "predicted": [predicted[k] for k in kept],
            }
            self._not_finite += not math.isfinite(row["loss"])
            self._file.write(to_json(row) + "\n")

    def on_predict_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self._file is None:
            return
        self._file.close()
        say(f"predictions: {self._path}")
        if self._not_finite:
            say(f"the loss of {self._not_finite:,} rows is not finite, which the file has as null")
