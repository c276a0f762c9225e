"""A running mean of the weights, which validation and later use of the model see."""

from collections.abc import Mapping
from typing import Annotated, Any

import lightning as L
import torch
from lightning.pytorch.callbacks import WeightAveraging
from torch import Tensor

from lightning_gpt.errors import CallError
from lightning_gpt.options import Range, check_options
from lightning_gpt.parallel.norms import local
from lightning_gpt.parallel.strategy import MeshStrategy
from lightning_gpt.training.module import LanguageModule


class Averaging(WeightAveraging):
    """Keeps an exponential moving average of the weights: Polyak & Juditsky 1992; Izmailov et al. 2018 (1803.05407).

    After the first optimizer step the mean is the weights; after the n-th, ``mean ← β mean + (1 − β) weights``, where β
    is the lesser of ``decay`` and ``n / (9 + n)``, so that early weights are soon forgotten. Validation measures the
    mean. A checkpoint stores the mean as its weights, so that :func:`lightning_gpt.load` returns it, and the weights in
    training beside it, from which a resumed run continues. Samples and diagnostics logged after a validation are of the
    weights in training.

    Args:
        decay: β; the mean reaches about 1 / (1 − β) steps back. No averaging when omitted.
    """

    def __init__(self, decay: Annotated[float, Range(above=0, below=1)] | None = None) -> None:
        check_options(Averaging.__init__, locals(), "averaging.")
        super().__init__(multi_avg_fn=self._take_in)
        self.decay = decay
        self._resumed: dict[str, Any] | None = None  # to be loaded once the model is laid out

    @torch.no_grad()
    def _take_in(self, means: list[Tensor], weights: list[Tensor], n: Tensor | int) -> None:
        assert self.decay is not None
        share = 1 - min(self.decay, (1 + int(n)) / (10 + int(n)))
        torch._foreach_lerp_([local(mean) for mean in means], [local(weight) for weight in weights], share)

    def should_update(self, step_idx: int | None = None, epoch_idx: int | None = None) -> bool:
        return self.decay is not None and step_idx is not None

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if self.decay is None:
            return
        if stage == "fit" and trainer.precision in ("bf16-true", "16-true"):
            raise CallError(
                f"averaging.decay and trainer.precision {trainer.precision} cannot be combined: in half precision "
                f"the mean's steps are rounded away; use {trainer.precision.replace('true', 'mixed')}"
            )
        super().setup(trainer, pl_module, stage)

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Give the mean the precision of the weights, and spread it over the processes as they are."""
        strategy = trainer.strategy
        if self._average_model is not None:
            mean = trainer.precision_plugin.convert_module(self._average_model.module)
            if isinstance(strategy, MeshStrategy) and isinstance(mean, LanguageModule):
                strategy.lay_out(mean.model)
        if isinstance(strategy, MeshStrategy) and self._resumed is not None:
            self._load_parts(strategy, pl_module, self._resumed)
            self._resumed = None

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Do nothing: Lightning would replace the weights by the mean before the last checkpoint is saved, and that
        checkpoint could then not be resumed exactly."""

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        if self._average_model is not None:
            super().on_save_checkpoint(trainer, pl_module, checkpoint)

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        strategy = trainer.strategy
        if isinstance(strategy, MeshStrategy) and trainer.state.fn == "fit":
            if strategy.is_laid_out:
                self._load_parts(strategy, pl_module, checkpoint)
            else:
                self._resumed = checkpoint
        elif self._average_model is not None:
            super().on_load_checkpoint(trainer, pl_module, checkpoint)
        elif trainer.state.fn == "fit" and "current_model_state" in checkpoint:
            pl_module.load_state_dict(checkpoint["current_model_state"])  # the run continues without a mean

    def _load_parts(self, strategy: MeshStrategy, pl_module: L.LightningModule, checkpoint: Mapping[str, Any]) -> None:
        """Load the parts of mean and weights that this process holds; the strategy has loaded the mean as weights."""
        if self._average_model is not None:
            strategy.load_weights(self._average_model.module)
            if "averaging_state" in checkpoint:
                self._average_model.n_averaged.copy_(checkpoint["averaging_state"]["n_averaged"])
        if "current_model_state" in checkpoint:
            strategy.load_weights(pl_module, "current_model_state")
