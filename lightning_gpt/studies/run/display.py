"""What a study shows while it runs: a live table on a terminal, one line per event anywhere else."""

from collections.abc import Mapping, Sequence

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from lightning_gpt.studies.run.process import CellProcess
from lightning_gpt.studies.run.result import CellResult
from lightning_gpt.studies.spec.measures import measure

_FIGURES_IN_A_LINE = 3


class Display:
    """Cells done, running and failed, the step and loss of the running ones, and the time left.

    Args:
        measures: The study's measures; a finished cell's line shows the first of them.
        work: The relative work of each cell, by number, from which the time left is estimated.
        console: Where to print; standard error when omitted.
    """

    def __init__(self, measures: Sequence[str], work: Mapping[int, float], console: Console | None = None) -> None:
        self._measures = [measure(tag) for tag in measures[:_FIGURES_IN_A_LINE]]
        self._work = work
        self._console = console or Console(stderr=True, highlight=False, soft_wrap=True)
        # show() refreshes it: a thread of its own would be running while the study forks its processes
        self._live = Live(console=self._console, auto_refresh=False, transient=True)
        self._total = self._done = self._failed = 0
        self._waiting_work = self._spent_work = self._spent_seconds = 0.0

    def say(self, message: str) -> None:
        """Print one line, as plain text."""
        self._console.print(message, markup=False)

    def begin(self, title: str, results: Sequence[CellResult]) -> None:
        """Begin, with the results of the cells that are done already among ``results``."""
        self._total, self._done = len(results), sum(each.status == "finished" for each in results)
        self._waiting_work = sum(self._work_of(each.cell.number) for each in results if each.status != "finished")
        self.say(f"{title}: {self._total} cells, {self._done} already done")
        if self._console.is_terminal:
            self._live.start()

    def _work_of(self, cell: int) -> float:
        return self._work.get(cell, 1.0)

    def started(self, process: CellProcess) -> None:
        """A cell was started or resumed."""
        if not self._console.is_terminal:
            how = "started" if process.resumed_from is None else f"resumed from {process.resumed_from}"
            self.say(f"cell {process.cell.number} {process.cell.name}: {how}")

    def ended(self, result: CellResult, seconds: float) -> None:
        """A cell ended after ``seconds``."""
        name = f"cell {result.cell.number} {result.cell.name}"
        self._waiting_work -= self._work_of(result.cell.number)
        if result.status == "failed":
            self._failed += 1
            self.say(f"{name}: failed: {result.error}")
            return
        self._done += 1
        self._spent_work += self._work_of(result.cell.number)
        self._spent_seconds += seconds
        figures = [f"{each.label} {each.text(result.value(each.tag))} {each.unit}".strip() for each in self._measures]
        self.say(f"{name}: done in {_clock(seconds)}: {', '.join(figures)}")

    def show(self, running: Sequence[CellProcess]) -> None:
        """Refresh the table on a terminal; do nothing elsewhere."""
        if not self._live.is_started:
            return
        table = Table(box=None, padding=(0, 2))
        table.add_column("cell", header_style="dim")
        for title in ("step", "loss", "time"):
            table.add_column(title, justify="right", header_style="dim", no_wrap=True)  # a long name gives way
        shares = {}
        for process in running:
            progress = process.progress()
            shares[process.cell.number] = progress.share
            of = f"/{progress.steps:,}" if progress.steps else ""
            step = f"{progress.step:,}{of}" if progress.step else "starting"
            loss = "" if progress.loss is None else f"{progress.loss:.3f}"
            table.add_row(Text(process.cell.name), step, loss, _clock(process.seconds))
        failed = f", {self._failed} failed" if self._failed else ""
        line = f"{self._done} of {self._total} cells done, {len(running)} running{failed}"
        self._live.update(Group(Text(line + self._left(running, shares)), table), refresh=True)

    def _left(self, running: Sequence[CellProcess], shares: Mapping[int, float]) -> str:
        """The time left, estimated from the work done so far; empty before any is done."""
        partly = sum(share * self._work_of(number) for number, share in shares.items())
        spent = self._spent_work + partly
        seconds = self._spent_seconds + sum(process.seconds for process in running)
        if not spent or not running:
            return ""
        return f", about {_clock((self._waiting_work - partly) * seconds / spent / len(running))} left"

    def end(self) -> None:
        """Remove the table."""
        if self._live.is_started:
            self._live.stop()


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes}:{rest:02d}"
