"""What ``prepare`` shows while it works."""

from time import monotonic
from typing import Self

from lightning_gpt.data.prepare.parts import Part, Tally

_SECONDS_BETWEEN_LINES = 15.0


class Progress:
    """Documents, tokens and tokens/s: a live line on a terminal, a printed one now and then anywhere else."""

    def __init__(self) -> None:
        from rich.progress import Progress as Bar
        from rich.progress import SpinnerColumn, TextColumn, TimeElapsedColumn

        from lightning_gpt.console import console, say

        columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
        self._bar = Bar(*columns, console=console, transient=True, disable=not console.is_terminal)
        self._line = self._bar.add_task("", total=None)
        self._say = say
        self._name = ""
        self._before, self._new = Tally(), Tally()
        self._started = self._last_said = monotonic()

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        self._bar.stop()
        if error is None:
            self._say(self._figures)

    @property
    def _figures(self) -> str:
        total = self._before + self._new
        speed = self._new.tokens / max(monotonic() - self._started, 1e-9)
        return f"{total.documents:,} documents, {total.tokens:,} tokens, {speed:,.0f} tokens/s"

    def begin(self, name: str, done: list[Part]) -> None:
        """Begin, or go on with, a source."""
        self._name = name
        self._before = sum((part.total for part in done), self._before)
        if done:
            self._say(f"{name}: going on after document {done[-1].end_document:,}")

    def dismiss(self, parts: list[Part]) -> None:
        """Count parts no more that were deleted."""
        self._before = sum((Tally() - part.total for part in parts), self._before)

    def advance(self, parts: list[Part]) -> None:
        """Count the parts that are new."""
        self._new = sum((part.total for part in parts), self._new)
        self._bar.update(self._line, description=f"{self._name}: {self._figures}")
        if self._bar.disable and monotonic() - self._last_said >= _SECONDS_BETWEEN_LINES:
            self._last_said = monotonic()
            self._say(f"{self._name}: {self._figures}")
