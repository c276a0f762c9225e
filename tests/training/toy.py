"""A module of one weight, for callbacks whose work can then be done by hand."""

from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor
from torch.utils.data import DataLoader


class Toy(L.LightningModule):
    """Step n (1 is the first) has the loss ``losses[n − 1]`` and moves the weight, at first 0, by −0.1 times it."""

    def __init__(self, losses: list[float]) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.losses = losses
        self.seen: list[float] = []
        self.validated: list[float] = []

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        self.seen.append(float(self.weight))
        loss = self.losses[int(batch)]
        return loss * (1 + self.weight - self.weight.detach())

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        self.validated.append(float(self.weight))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def fit(module: Toy, folder: Path, *callbacks: L.Callback, resume: Path | None = None, **trainer: Any) -> None:
    """Train over the losses in their order, without validation unless it is asked for."""
    made = L.Trainer(
        accelerator="cpu",
        default_root_dir=folder,
        logger=False,
        enable_checkpointing=any(isinstance(callback, L.pytorch.callbacks.Checkpoint) for callback in callbacks),
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=list(callbacks),
        **{"max_epochs": 1, "limit_val_batches": 0, "num_sanity_val_steps": 0, **trainer},
    )
    steps = DataLoader(torch.arange(len(module.losses)), batch_size=None)
    made.fit(module, steps, DataLoader(torch.zeros(1), batch_size=None), ckpt_path=resume)
