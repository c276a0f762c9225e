"""Interleaved measurements, so that a machine that slows down affects everything compared alike."""

import gc
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from lightning_gpt.training.device_clock import clock


@dataclass(frozen=True)
class Spread:
    """The median, minimum and maximum of some values."""

    median: float
    least: float
    most: float

    @classmethod
    def of(cls, figures: Sequence[float]) -> "Spread":
        """The spread of at least one value."""
        return cls(statistics.median(figures), min(figures), max(figures))

    def scaled(self, factor: float) -> "Spread":
        """The spread in another unit; ``factor`` is positive."""
        return Spread(self.median * factor, self.least * factor, self.most * factor)


def interleaved(costs: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Call each of ``costs`` once per round and return its values by round.

    The order is reversed from round to round, and garbage is collected before each call. One more round comes first and
    is discarded, because libraries initialise themselves in it.
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
    """The spread of ``above / below``; each ratio is of two values from the same round."""
    return Spread.of([a / b for a, b in zip(above, below, strict=True)])


def linearity(xs: Sequence[float], spreads: Sequence[Spread]) -> float:
    """R² of a line through the medians; it needs three different ``xs`` to say anything."""
    return statistics.correlation(xs, [spread.median for spread in spreads]) ** 2


def seconds(work: Callable[[], object], device: torch.device) -> float:
    """Wall time of ``work`` in seconds, with all the work it queues on ``device`` and none queued before."""
    start = clock(device)
    work()
    return clock(device) - start
