"""TensorBoard without the curves that repeat another."""

from collections.abc import Mapping
from typing import Any

from lightning.pytorch.loggers import TensorBoardLogger

REPEATED = frozenset({"train/perplexity", "val/perplexity", "test/perplexity", "cost/tokens_per_second"})
"""A perplexity is the exponential of the loss, and tokens per second are the tokens per step over its time."""


class BoardLogger(TensorBoardLogger):
    """The logger of a run that names none: each curve once, so that a page is read at a glance.

    ``metrics.jsonl`` has every scalar; a ``TensorBoardLogger`` that is asked for by name has, too.
    """

    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Write those of ``metrics`` that say something of their own."""
        super().log_metrics({tag: value for tag, value in metrics.items() if tag not in REPEATED}, step)
