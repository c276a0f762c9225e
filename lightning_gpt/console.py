"""Progress messages, on standard error of the first process only."""

import os
import sys
from time import monotonic

from rich.console import Console

_RANKS = ("RANK", "LOCAL_RANK", "SLURM_PROCID", "JSM_NAMESPACE_RANK")
"""Where launchers say which process this is, in the order in which Lightning asks."""

console = Console(stderr=True, highlight=False, soft_wrap=True)


SECONDS_BETWEEN_LINES = 15.0
"""How often a long work says how far it is where no live line can show it."""


class LinePace:
    """Says when the next line of progress is due: :data:`SECONDS_BETWEEN_LINES` after the one before."""

    def __init__(self) -> None:
        self._last = monotonic()

    def is_due(self) -> bool:
        """Whether it is time for a line; if so, the next one is due that much later."""
        now = monotonic()
        if now - self._last < SECONDS_BETWEEN_LINES:
            return False
        self._last = now
        return True


def say(message: str) -> None:
    """Print one line of progress, as plain text."""
    if _rank() == 0:
        console.print(message, markup=False)


def _rank() -> int:
    """The number of this process in its run: Lightning knows it, but a command without a Trainer does not import it."""
    lightning = sys.modules.get("lightning.fabric.utilities.rank_zero")
    if lightning is not None:
        return int(lightning.rank_zero_only.rank)
    return next((int(os.environ[name]) for name in _RANKS if name in os.environ), 0)
