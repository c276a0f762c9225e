"""The validation loss before the first step."""

import math

import lightning as L
from lightning.pytorch.callbacks import Callback

from lightning_gpt.training.module import LanguageModule


class InitialLoss(Callback):
    """Logs ``initial/loss`` at step 0, and beside it ``initial/uniform_loss``, the loss ln|V| of a uniform guess.

    The loss is that before training, over the batches of Lightning's sanity check: the whole validation split
    unless ``num_sanity_val_steps`` says otherwise.
    """

    def on_sanity_check_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if "val/loss" not in trainer.callback_metrics or not isinstance(pl_module, LanguageModule):
            return
        values = {
            "initial/loss": float(trainer.callback_metrics["val/loss"]),
            "initial/uniform_loss": math.log(pl_module.model.config.vocab_size),
        }
        for logger in trainer.loggers:
            logger.log_metrics(values, step=trainer.global_step)
