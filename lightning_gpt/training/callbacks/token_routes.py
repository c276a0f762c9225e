"""Logs how many tokens go through each routed block of a mixture of depths."""

from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback

from lightning_gpt.models.wrappers.token_routing import TokenRouter, token_routers
from lightning_gpt.training.module import LanguageModule


class TokenRoutes(Callback):
    """Logs ``routing/share/layer_<i>`` at each validation: the share of the tokens that went through the block.

    In training that share equals the capacity. In validation each token is decided on its own, so the share is near the
    capacity once the decision has been learned. A model without routed blocks logs nothing.
    """

    def __init__(self) -> None:
        self._routers: dict[int, TokenRouter] = {}

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if isinstance(pl_module, LanguageModule):
            self._routers = token_routers(pl_module.model.block_views())

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        for router in self._routers.values():  # samples and diagnostics have counted since the last one
            router.take_passed()

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        passed = [router.take_passed() for router in self._routers.values()]
        if trainer.sanity_checking or not isinstance(pl_module, LanguageModule):
            return
        own = {}
        if passed:
            none = torch.zeros(2, device=pl_module.device)
            counts = [none if p is None else torch.stack([p.through, p.tokens]).float() for p in passed]
            total: Any = trainer.strategy.reduce(torch.stack(counts), reduce_op="sum")
            own = {
                layer: float(through / tokens)
                for layer, (through, tokens) in zip(self._routers, total, strict=True)
                if tokens
            }
        shares = {f"routing/share/layer_{layer:02}": share for layer, share in pl_module.of_all_layers(own).items()}
        for logger in trainer.loggers if shares else ():
            logger.log_metrics(shares, step=trainer.global_step)
