"""A running mean of the weights, which validation and later use of the model see."""

from typing import Annotated, Any

import lightning as L
import torch
from lightning.pytorch.callbacks import WeightAveraging
from torch import Tensor

from lightning_gpt.options import Range, check_options
from lightning_gpt.parallel.norms import local
from lightning_gpt.parallel.strategy import MeshStrategy
from lightning_gpt.training.module import LanguageModule


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
        torch._foreach_lerp_([local(mean) for mean in means], [local(weight) for weight in weights], share)

    def should_update(self, step_idx: int | None = None, epoch_idx: int | None = None) -> bool:
        return self.decay is not None and step_idx is not None

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if self.decay is not None:
            super().setup(trainer, pl_module, stage)

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Give the mean the precision of the weights, and spread it over the processes as they are."""
        if self._average_model is None:
            return
        mean = trainer.precision_plugin.convert_module(self._average_model.module)
        if isinstance(trainer.strategy, MeshStrategy) and isinstance(mean, LanguageModule):
            trainer.strategy.lay_out(mean.model)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Do nothing: Lightning would replace the weights by the mean before the last checkpoint is saved, and that
        checkpoint could then not be resumed exactly."""

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        strategy, mean = trainer.strategy, self._average_model
        if mean is not None and isinstance(strategy, MeshStrategy):
            checkpoint["current_model_state"] = checkpoint["state_dict"]
            checkpoint["state_dict"] = strategy.whole_state_of(mean.module)
            checkpoint["averaging_state"] = {"n_averaged": mean.n_averaged.cpu()}
        elif mean is not None:
            super().on_save_checkpoint(trainer, pl_module, checkpoint)

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        strategy, mean = trainer.strategy, self._average_model
        is_spread = isinstance(strategy, MeshStrategy) and strategy.is_laid_out
        if mean is not None and is_spread and "averaging_state" in checkpoint:
            assert isinstance(strategy, MeshStrategy)
            strategy.load_whole_into(mean.module, checkpoint["state_dict"])
            mean.n_averaged.copy_(checkpoint["averaging_state"]["n_averaged"])
            strategy.load_whole_into(pl_module, checkpoint["current_model_state"])
        elif mean is not None:
            super().on_load_checkpoint(trainer, pl_module, checkpoint)
        elif trainer.state.fn == "fit" and "current_model_state" in checkpoint:
            pl_module.load_state_dict(checkpoint["current_model_state"])  # the run continues without a mean
