"""The stages of a study that run short: trials, which choose an option for each setting, and measurements of cost."""

import math
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
        halving: With η, trials are cut short by successive halving: Jamieson & Talwalkar 2016 (1502.07943), algorithm
            1. All values are tried for a fraction of the budget; the best 1/η of each setting go on to η times as many
            steps, until at most η are left for the whole budget. None to try every value for the whole budget.
    """

    key: str
    values: list[Any]
    budget: int
    seeds: list[int]
    halving: int | None = None

    @property
    def name(self) -> str:
        """The option's own name."""
        return self.key.rpartition(".")[2]

    @property
    def rungs(self) -> list[tuple[int, int]]:
        """How many values of a setting are tried in each rung, and for how many optimizer steps."""
        counts = [len(self.values)]
        while self.halving is not None and counts[-1] > self.halving:
            counts.append(math.ceil(counts[-1] / self.halving))
        last, factor = len(counts) - 1, self.halving or 1
        return [(count, max(1, self.budget // factor ** (last - rung))) for rung, count in enumerate(counts)]


def shortened(config: Mapping[str, Any], steps: int) -> dict[str, Any]:
    """The keys that make of a configuration one of ``steps`` optimizer steps, validated at its end alone."""
    changes: dict[str, Any] = {"trainer.max_steps": steps, "trainer.max_epochs": -1, "diagnostics.enabled": False}
    changes |= {"trainer.check_val_every_n_epoch": None}
    if value_at(config, "data.global_batch") is None:  # else it is not known here, and the steps are only timed
        each = value_at(config, "trainer.accumulate_grad_batches") or 1
        changes["trainer.val_check_interval"] = steps * each
    return changes
