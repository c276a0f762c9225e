"""The first stage of a study that chooses one option, such as the learning rate, for each setting."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lightning_gpt.studies.spec.cells import value_at

MEASURE = "val/loss"
"""What is lowest at the best value."""


@dataclass(frozen=True)
class Tune:
    """How each setting's value of one option is chosen.

    Args:
        key: The option's dotted key.
        values: The values that are tried.
        budget: Optimizer steps of each trial; the learning rate's schedule is run to its end in them.
        seeds: The seeds of each trial.
    """

    key: str
    values: list[Any]
    budget: int
    seeds: list[int]

    @property
    def name(self) -> str:
        """The option's own name."""
        return self.key.rpartition(".")[2]

    def overrides(self, config: Mapping[str, Any]) -> dict[str, Any]:
        """What a trial changes in its setting's configuration: it is shorter, and is measured at its end alone."""
        each = value_at(config, "trainer.accumulate_grad_batches") or 1
        changes: dict[str, Any] = {
            "trainer.max_steps": self.budget,
            "trainer.max_epochs": -1,
            "diagnostics.enabled": False,
        }
        changes |= {"trainer.check_val_every_n_epoch": None}
        if value_at(config, "data.global_batch") is None:  # otherwise the micro-batches of a step are not known here
            changes["trainer.val_check_interval"] = self.budget * each
        return changes
