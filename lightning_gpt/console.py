"""Progress messages, on standard error of the first process only."""

from lightning.pytorch.utilities import rank_zero_only
from rich.console import Console

console = Console(stderr=True, highlight=False, soft_wrap=True)


@rank_zero_only
def say(message: str) -> None:
    """Print one line of progress, as plain text."""
    console.print(message, markup=False)
