"""Measuring contenders side by side, so that a machine that slows down slows them all down."""

import gc
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from lightning_gpt.training.peak import synchronize


@dataclass(frozen=True)
class Spread:
    """The median of some figures, with the least and the most of them."""

    median: float
    least: float
    most: float

    @classmethod
    def of(cls, figures: Sequence[float]) -> "Spread":
        """Of at least one figure."""
        return cls(statistics.median(figures), min(figures), max(figures))

    def scaled(self, factor: float) -> "Spread":
        """The same in another unit; ``factor`` is positive."""
        return Spread(self.median * factor, self.least * factor, self.most * factor)


def interleaved(costs: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """What each of ``costs`` gives in each of ``rounds`` rounds.

    Each round asks everyone once, in an order that is reversed from round to round; a first round, in which libraries
    set themselves up, is thrown away, and garbage is collected before each cost.
    """
    measured: dict[str, list[float]] = {name: [] for name in costs}
    for number in range(1 + rounds):
        for name in list(costs)[:: 1 if number % 2 else -1]:
            gc.collect()
            cost = costs[name]()
            if number:
                measured[name].append(cost)
    return measured


def ratio(above: Sequence[float], below: Sequence[float]) -> Spread:
    """``above / below``, each ratio of two figures of one round."""
    return Spread.of([a / b for a, b in zip(above, below, strict=True)])


def clock(device: torch.device) -> float:
    """``time.perf_counter()`` once ``device`` has finished its queued work: CUDA runs behind the Python code."""
    synchronize(device)
    return time.perf_counter()


def seconds(work: Callable[[], object], device: torch.device) -> float:
    """Wall time of ``work`` in seconds, including all it leaves queued on ``device`` and nothing queued before."""
    start = clock(device)
    work()
    return clock(device) - start
