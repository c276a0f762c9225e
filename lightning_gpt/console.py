"""Progress messages, on standard error of the first process only."""

import os
import sys
from time import monotonic

from rich.console import Console

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
    # Lightning knows it, but a command without a Trainer does not import it
    lightning = sys.modules.get("lightning.fabric.utilities.rank_zero")
    if is_first_process() if lightning is None else lightning.rank_zero_only.rank == 0:
        console.print(message, markup=False)


def is_first_process() -> bool:
    """Whether this process is the first of its run, as launchers say in the variables that Lightning reads."""
    if "RANK" in os.environ:
        return os.environ["RANK"] == "0"
    return all(os.environ.get(name, "0") == "0" for name in ("LOCAL_RANK", "SLURM_PROCID", "JSM_NAMESPACE_RANK"))
