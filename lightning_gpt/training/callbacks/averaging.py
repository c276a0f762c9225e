"""A running mean of the weights, which validation and later use of the model see."""

from typing import Annotated, Any

import lightning as L
import torch
from lightning.pytorch.callbacks import WeightAveraging
from torch import Tensor

from lightning_gpt.options import Range, check_options


class Averaging(WeightAveraging):
    """Keeps an exponential moving average of the weights: Polyak & Juditsky 1992; Izmailov et al. 2018 (1803.05407).

    After each optimizer step ``mean ← β mean + (1 − β) weights``, where β is the lesser of ``decay`` and
    ``(1 + n) / (10 + n)`` after n steps, so that the initial weights are soon forgotten. Validation measures the mean.
    A checkpoint stores the mean as its weights, so that :func:`lightning_gpt.load` returns it, and the weights in
    training beside it, from which a resumed run continues. Samples and diagnostics logged after a validation are of
    the weights in training.

    Args:
        decay: β; the mean reaches about 1 / (1 − β) steps back. No averaging when omitted.
    """

    def __init__(self, decay: Annotated[float, Range(above=0, below=1)] | None = None) -> None:
        check_options(Averaging.__init__, locals(), "averaging.")
        super().__init__(multi_avg_fn=self._take_in)
        self.decay = decay

    @torch.no_grad()
    def _take_in(self, means: list[Tensor], weights: list[Tensor], n: Tensor | int) -> None:
        assert self.decay is not None
        share = 1 - min(self.decay, (1 + int(n)) / (10 + int(n)))
        torch._foreach_lerp_(means, weights, share)

    def should_update(self, step_idx: int | None = None, epoch_idx: int | None = None) -> bool:
        return self.decay is not None and step_idx is not None

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if self.decay is not None:
            super().setup(trainer, pl_module, stage)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Do nothing: Lightning would replace the weights by the mean before the last checkpoint is saved, and that
        checkpoint could then not be resumed exactly."""

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        if self._average_model is not None:
            super().on_save_checkpoint(trainer, pl_module, checkpoint)

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        if self._average_model is not None:
            super().on_load_checkpoint(trainer, pl_module, checkpoint)
        elif trainer.state.fn == "fit" and "current_model_state" in checkpoint:
            pl_module.load_state_dict(checkpoint["current_model_state"])  # the run continues without a mean
