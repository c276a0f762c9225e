"""Mixtures of experts while they train: kept in equal use, and shown."""

from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from lightning_gpt.analysis.expert_plots import expert_heatmap
from lightning_gpt.models.ffn.moe.mixture import MixtureOfExperts, mixtures
from lightning_gpt.training.callbacks.board import board_of
from lightning_gpt.training.module import LanguageModule


class Experts(Callback):
    """Balances the experts after the tokens of each optimizer step, where the model does it by bias; logs their use.

    At each logged step, over the tokens of that step on all processes:

    - ``experts/share/layer_<i>/expert_<j>``: the expert's share of its layer's choices.
    - ``experts/dropped/layer_<i>``: the share of choices that came to nothing, where there is a capacity.
    - ``train/balance_loss``: the load-balancing loss without its coefficient, mean over layers: 1 in equal use.
    - ``train/router_z_loss``: the router z-loss without its coefficient, mean over layers.

    At the end of fit a heatmap ``experts/use``. Nothing for a model without mixtures.
    """

    def __init__(self) -> None:
        self._mixtures: dict[int, MixtureOfExperts] = {}
        self._shares: dict[int, list[float]] = {}

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if isinstance(pl_module, LanguageModule):
            self._mixtures = {int(name.split(".")[1]): mixture for name, mixture in mixtures(pl_module.model).items()}

    def on_before_optimizer_step(
        self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        every, step = trainer.log_every_n_steps, trainer.global_step + 1  # type: ignore[attr-defined]
        logged = bool(every) and step % every == 0
        uses = [mixture.take_use() or mixture.no_use() for mixture in self._mixtures.values()]
        if not uses or not (logged or any(m.router.balance == "bias" for m in self._mixtures.values())):
            return
        chosen = _summed([use.chosen for use in uses], trainer)
        for mixture, of_step in zip(self._mixtures.values(), chosen, strict=True):
            mixture.router.rebalance(of_step)
        if logged:
            figures = [torch.stack([use.dropped, use.balance_loss, use.z_loss, use.passes]).float() for use in uses]
            self._log(chosen, _summed(figures, trainer), trainer, step)

    def _log(self, chosen: list[Tensor], figures: list[Tensor], trainer: L.Trainer, step: int) -> None:
        """Log a step's choices by layer, and its ``(dropped, balance_loss, z_loss, passes)``."""
        values, losses = {}, []
        for layer, of_layer, of_passes in zip(self._mixtures, chosen, figures, strict=True):
            dropped, balance_loss, z_loss, passes = of_passes.tolist()
            if not passes:
                continue
            choices = int(of_layer.sum())
            losses.append((balance_loss / passes, z_loss / passes))
            self._shares[layer] = [count / choices for count in of_layer.tolist()]
            for expert, share in enumerate(self._shares[layer]):
                values[f"experts/share/layer_{layer:02}/expert_{expert:02}"] = share
            if self._mixtures[layer].capacity_factor is not None:
                values[f"experts/dropped/layer_{layer:02}"] = dropped / choices
        for name, of_layers in zip(("balance_loss", "router_z_loss"), zip(*losses, strict=True), strict=False):
            values[f"train/{name}"] = sum(of_layers) / len(of_layers)
        for logger in trainer.loggers:
            logger.log_metrics(values, step=step)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        board = board_of(trainer)
        if board is not None and self._shares:
            board.add_figure("experts/use", expert_heatmap(self._shares, trainer.global_step), trainer.global_step)


def _summed(parts: list[Tensor], trainer: L.Trainer) -> list[Tensor]:
    """Each vector summed over all processes, in one exchange."""
    total: Any = trainer.strategy.reduce(torch.cat(parts), reduce_op="sum")
    return list(torch.split(total, [len(part) for part in parts]))
