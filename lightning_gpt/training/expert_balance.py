"""Balancing mixtures of experts once per optimizer step, from how often each expert was chosen."""

from collections.abc import Callable

import torch
from torch import Tensor

from lightning_gpt.models import LanguageModel
from lightning_gpt.models.ffn.moe.mixture import MixtureOfExperts, mixtures
from lightning_gpt.models.ffn.moe.router import Use

Total = Callable[[Tensor], Tensor]
"""Sums a tensor over all processes; every process must call it."""


class ExpertBalance:
    """Reads the mixtures' use counters at each optimizer step and moves the routers' biases accordingly.

    The rule is :meth:`~lightning_gpt.models.ffn.moe.router.Router.rebalance`, applied to the choices made on all
    micro-batches of the step by all processes. Only mixtures with ``balance: bias`` have a bias to move.

    Args:
        model: The model being trained. A model without mixtures is allowed; there is then nothing to do.
        total: Sums a tensor over all processes.
    """

    def __init__(self, model: LanguageModel, total: Total) -> None:
        self.mixtures: dict[int, MixtureOfExperts] = mixtures(model.block_views())
        """The mixtures by layer, counted from 0."""
        self._total = total
        self._own: list[Use] = []
        self._choices: list[Tensor] | None = None

    def end_step(self, taken: bool = True) -> None:
        """Read and reset the use counters; move the biases by them.

        Args:
            taken: Whether the optimizer step changes the weights. The biases stay as they are if it does not.
        """
        self._own = [mixture.take_use() or mixture.no_use() for mixture in self.mixtures.values()]
        self._choices = None
        if taken and any(mixture.router.balance == "bias" for mixture in self.mixtures.values()):
            for mixture, chosen in zip(self.mixtures.values(), self._all_choices(), strict=True):
                mixture.router.rebalance(chosen)

    def use(self) -> dict[int, Use]:
        """How the experts of each layer were used in the last optimizer step, over all processes.

        Every process must call it. Empty before the first step.
        """
        if not self._own:
            return {}
        own = [torch.stack([use.dropped, use.balance_loss, use.z_loss, use.passes]).float() for use in self._own]
        uses = {}
        for layer, chosen, figures in zip(self.mixtures, self._all_choices(), self._summed(own), strict=True):
            dropped, balance_loss, z_loss, passes = figures.unbind()
            uses[layer] = Use(chosen, dropped, balance_loss, z_loss, passes)
        return uses

    def _all_choices(self) -> list[Tensor]:
        if self._choices is None:
            self._choices = self._summed([use.chosen for use in self._own])
        return self._choices

    def _summed(self, parts: list[Tensor]) -> list[Tensor]:
        """Each vector summed over all processes, in one exchange."""
        return list(torch.split(self._total(torch.cat(parts)), [len(part) for part in parts]))
