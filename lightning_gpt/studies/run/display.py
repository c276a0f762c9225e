"""What a study says while it runs: a live table on a terminal, a line an event anywhere else."""

from collections.abc import Mapping, Sequence

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from lightning_gpt.studies.run.process import CellProcess
from lightning_gpt.studies.run.results import Result, StudyResults
from lightning_gpt.studies.spec.measures import measure

_FIGURES_IN_A_LINE = 3


class Display:
    """Cells done, running and failed, the step and loss of the running ones, and the time left.

    Args:
        measures: The study's measures; a finished cell's line shows the first of them.
        work: The relative work of each cell, by number; only its proportions count, for the time left.
        console: Where to say it; standard error when omitted.
    """

    def __init__(self, measures: Sequence[str], work: Mapping[int, float], console: Console | None = None) -> None:
        self._measures = [measure(tag) for tag in measures[:_FIGURES_IN_A_LINE]]
        self._work = work
        self._console = console or Console(stderr=True, highlight=False, soft_wrap=True)
        # refreshed by show() and by no thread: the processes that a study starts are forked from one thread
        self._live = Live(console=self._console, auto_refresh=False, transient=True)
        self._total = self._done = self._failed = 0
        self._waiting_work = self._spent_work = self._spent_seconds = 0.0

    def say(self, message: str) -> None:
        """Print one line, as plain text."""
        self._console.print(message, markup=False)

    def begin(self, results: StudyResults) -> None:
        """Begin with what is finished already."""
        self._total, self._done = len(results.results), len(results.finished)
        self._waiting_work = sum(self._of(each.cell.number) for each in results.results if each.status != "finished")
        self.say(f"{results.study.title}: {self._total} cells, {self._done} of them done before")
        if self._console.is_terminal:
            self._live.start()

    def _of(self, cell: int) -> float:
        return self._work.get(cell, 1.0)

    def started(self, process: CellProcess) -> None:
        """A cell was started, or goes on."""
        if not self._console.is_terminal:
            goes_on = "" if process.resumed_from is None else f", goes on from {process.resumed_from}"
            self.say(f"cell {process.cell.number} {process.cell.name}: started{goes_on}")

    def ended(self, result: Result, seconds: float) -> None:
        """A cell has ended after ``seconds``."""
        name = f"cell {result.cell.number} {result.cell.name}"
        self._waiting_work -= self._of(result.cell.number)
        if result.status == "failed":
            self._failed += 1
            self.say(f"{name}: failed: {result.error}")
            return
        self._done += 1
        self._spent_work += self._of(result.cell.number)
        self._spent_seconds += seconds
        figures = [f"{each.label} {each.text(result.value(each.tag))} {each.unit}".strip() for each in self._measures]
        self.say(f"{name}: done in {_clock(seconds)}: {', '.join(figures)}")

    def show(self, running: Sequence[CellProcess]) -> None:
        """Refresh the table, on a terminal."""
        if not self._live.is_started:
            return
        table = Table(box=None, padding=(0, 2))
        for title, side in (("cell", "left"), ("step", "right"), ("loss", "right"), ("time", "right")):
            table.add_column(title, justify="left" if side == "left" else "right", header_style="dim")
        shares = {}
        for process in running:
            progress = process.progress()
            shares[process.cell.number] = progress.share
            of = f"/{progress.steps:,}" if progress.steps else ""
            step = f"{progress.step:,}{of}" if progress.step else "starting"
            table.add_row(Text(process.cell.name), step, progress.loss, _clock(process.seconds))
        failed = f", {self._failed} failed" if self._failed else ""
        line = f"{self._done} of {self._total} cells done, {len(running)} running{failed}"
        self._live.update(Group(Text(line + self._left(running, shares)), table), refresh=True)

    def _left(self, running: Sequence[CellProcess], shares: Mapping[int, float]) -> str:
        """The time left, from the work done so far; nothing before there is any to go by."""
        partly = sum(share * self._of(number) for number, share in shares.items())
        spent = self._spent_work + partly
        seconds = self._spent_seconds + sum(process.seconds for process in running)
        if not spent or not running:
            return ""
        return f", about {_clock((self._waiting_work - partly) * seconds / spent / len(running))} left"

    def end(self) -> None:
        """Take the table away."""
        if self._live.is_started:
            self._live.stop()


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes}:{rest:02d}"
