"""Logs how a model's mixtures of experts are used while it trains."""

from typing import Any, NamedTuple

import lightning as L
from lightning.pytorch.callbacks import Callback

from lightning_gpt.analysis.expert_plots import expert_heatmap
from lightning_gpt.data.batches import Batch
from lightning_gpt.training.callbacks.board import board_of
from lightning_gpt.training.expert_balance import ExpertBalance
from lightning_gpt.training.module import LanguageModule


class ExpertUse(Callback):
    """Logs the use of the experts at each logged optimizer step, over the tokens of that step on all processes.

    - ``experts/share/layer_<i>/expert_<j>``: the expert's share of its layer's choices.
    - ``experts/dropped/layer_<i>``: the share of choices dropped for lack of capacity, if there is a capacity.
    - ``train/balance_loss``: the load-balancing loss without its coefficient, mean over layers; 1 under equal use.
    - ``train/router_z_loss``: the router z-loss without its coefficient, mean over layers.

    At the end of fit, a heatmap ``experts/use``. A model without mixtures logs nothing. The balancing itself is the
    module's: :mod:`lightning_gpt.training.expert_balance`.
    """

    def __init__(self) -> None:
        self._shares: dict[int, list[float]] = {}
        self._step = 0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._step = trainer.global_step

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        step, every = trainer.global_step, trainer.log_every_n_steps  # type: ignore[attr-defined]
        if step == self._step:
            return
        self._step = step
        if every and step % every == 0 and isinstance(pl_module, LanguageModule) and pl_module.experts is not None:
            figures = pl_module.of_all_layers(_figures(pl_module.experts))
            if figures:
                self._log(figures, trainer)

    def _log(self, figures: "dict[int, _Figures]", trainer: L.Trainer) -> None:
        values, losses = {}, []
        for layer, (shares, dropped, *of_layer) in figures.items():
            losses.append(of_layer)
            self._shares[layer] = shares
            for expert, share in enumerate(shares):
                values[f"experts/share/layer_{layer:02}/expert_{expert:02}"] = share
            if dropped is not None:
                values[f"experts/dropped/layer_{layer:02}"] = dropped
        for name, of_layers in zip(("balance_loss", "router_z_loss"), zip(*losses, strict=True), strict=False):
            values[f"train/{name}"] = sum(of_layers) / len(of_layers)
        for logger in trainer.loggers:
            logger.log_metrics(values, step=trainer.global_step)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        board = board_of(trainer)
        if board is not None and self._shares:
            board.add_figure("experts/use", expert_heatmap(self._shares, trainer.global_step), trainer.global_step)


class _Figures(NamedTuple):
    shares: list[float]
    dropped: float | None  # None without a capacity
    balance_loss: float
    z_loss: float


def _figures(experts: ExpertBalance) -> dict[int, _Figures]:
    """How the mixtures of this process's layers were used in the last optimizer step, by layer."""
    found = {}
    for layer, use in experts.use().items():
        passes, choices = int(use.passes), int(use.chosen.sum())
        if passes:
            has_capacity = experts.mixtures[layer].capacity_factor is not None
            found[layer] = _Figures(
                shares=[count / choices for count in use.chosen.tolist()],
                dropped=float(use.dropped) / choices if has_capacity else None,
                balance_loss=float(use.balance_loss) / passes,
                z_loss=float(use.z_loss) / passes,
            )
    return found
