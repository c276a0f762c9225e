"""The progress that ``prepare`` shows."""

from collections.abc import Sequence
from time import monotonic
from typing import Self

from lightning_gpt.console import LinePace, console, say
from lightning_gpt.data.prepare.parts import PartFile, Tally
from lightning_gpt.data.prepare.workers import Progress


class ConsoleProgress(Progress):
    """Documents, tokens and tokens/s: a live line on a terminal, elsewhere a printed line every 15 seconds."""

    def __init__(self) -> None:
        from rich.progress import Progress as Bar
        from rich.progress import SpinnerColumn, TextColumn, TimeElapsedColumn

        columns = (SpinnerColumn(), TextColumn("{task.description}", markup=False), TimeElapsedColumn())
        self._bar = Bar(*columns, console=console, transient=True, disable=not console.is_terminal)
        self._line = self._bar.add_task("", total=None)
        self._name = ""
        self._before, self._new = Tally(), Tally()
        self._started = 0.0  # set on entry

    def __enter__(self) -> Self:
        self._started, self._pace = monotonic(), LinePace()
        self._bar.start()
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        self._bar.stop()
        if error is None:
            say(self._figures)

    @property
    def _figures(self) -> str:
        total = self._before + self._new
        speed = self._new.tokens / max(monotonic() - self._started, 1e-9)
        return f"{total.documents:,} documents, {total.tokens:,} tokens, {speed:,.0f} tokens/s"

    def begin(self, name: str, done: Sequence[PartFile]) -> None:
        """Show a source's name and, if an earlier run has begun it, where it resumes."""
        self._name = name
        self._before = sum((part.total for part in done), self._before)
        if done:
            say(f"{name}: resuming after document {done[-1].end_document:,}")

    def dismiss(self, parts: Sequence[PartFile]) -> None:
        """Subtract parts that were deleted."""
        self._before = sum((Tally() - part.total for part in parts), self._before)

    def advance(self, parts: Sequence[PartFile]) -> None:
        """Add new parts and update the display."""
        self._new = sum((part.total for part in parts), self._new)
        self._bar.update(self._line, description=f"{self._name}: {self._figures}")
        if self._bar.disable and self._pace.is_due():
            say(f"{self._name}: {self._figures}")
