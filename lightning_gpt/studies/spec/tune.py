"""The stages of a study that run short: trials, which choose an option for each setting, and measurements of cost."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lightning_gpt.studies.spec.cells import value_at

MEASURE = "val/loss"
"""What is lowest at the best value."""

TIMES = ("cost/step_seconds", "cost/tokens_per_second")
"""What a measurement of cost measures."""


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


def shortened(config: Mapping[str, Any], steps: int) -> dict[str, Any]:
    """The keys that make of a configuration one of ``steps`` optimizer steps, validated at its end alone."""
    changes: dict[str, Any] = {"trainer.max_steps": steps, "trainer.max_epochs": -1, "diagnostics.enabled": False}
    changes |= {"trainer.check_val_every_n_epoch": None}
    if value_at(config, "data.global_batch") is None:  # otherwise the micro-batches of a step are not known here
        each = value_at(config, "trainer.accumulate_grad_batches") or 1
        changes["trainer.val_check_interval"] = steps * each
    return changes
