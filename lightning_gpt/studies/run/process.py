"""One cell as a process: started or resumed, watched, stopped."""

import os
import signal
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import yaml

from lightning_gpt.studies.run.locks import try_lock
from lightning_gpt.studies.run.progress import CellProgress, RunFollower
from lightning_gpt.studies.run.result import TEST_FOLDER, fail, finish, run_folders
from lightning_gpt.studies.run.starter import Started, Starter
from lightning_gpt.studies.spec.cells import Cell
from lightning_gpt.whole_file import write_file


class CellProcess:
    """``lightning-gpt fit`` on one cell and, where test figures are wanted, ``lightning-gpt test`` after it.

    Their output is in ``fit.log`` and ``test.log`` in the cell's folder, for people to read; figures come from the
    ``metrics.jsonl`` that each writes. They end when the process that started them ends, and hold the cell's lock as
    long as they live.

    Args:
        cell: The cell.
        folder: Its folder.
        lock: The descriptor of the cell's lock; see :func:`lock_cell`.
        config: The configuration to run: the cell's, with the study's own files put in.
        environment: Environment variables that set the process's threads and GPUs.
        tests: Whether to measure the test split after the training.
        starter: What starts its processes.
        options: Added to the command line of both.
        watched: Whether its starter knows what runs beside it, and says so with :meth:`beside`.
    """

    def __init__(
        self,
        cell: Cell,
        folder: Path,
        lock: int,
        config: dict[str, object],
        environment: dict[str, str],
        tests: bool,
        starter: Starter,
        options: Sequence[str] = (),
        watched: bool = True,
    ) -> None:
        self.cell = cell
        self.folder = folder
        self.resumed_from = latest_checkpoint(folder)
        self._lock = lock
        self._environment = {**environment, "PYTHONUNBUFFERED": "1"}
        self._starter = starter
        self._tests = tests
        self._options = options
        self._started = time.monotonic()
        self._follower = RunFollower(folder)
        self._neighbours = folder / "neighbours"
        self._is_watched = watched
        self._config = folder / "config.yaml"
        write_file(self._config, yaml.safe_dump(config, sort_keys=False, allow_unicode=True))
        checkpoint = () if self.resumed_from is None else ("--ckpt_path", str(self.resumed_from))
        self._log = folder / "fit.log"
        self._process = self._start("fit", "--config", str(self._config), "--name", str(folder.resolve()), *checkpoint)

    def _start(self, *args: str) -> Started:
        return self._starter.start([*args, *self._options], self._environment, self._log, self._lock)

    @property
    def seconds(self) -> float:
        """Seconds since it was started."""
        return time.monotonic() - self._started

    def progress(self) -> CellProgress:
        """How far the training is."""
        return self._follower.progress()

    def beside(self, others: int) -> None:
        """Note that ``others`` cells run beside it; the most of all its attempts are kept."""
        if others > self._most_beside:
            write_file(self._neighbours, str(others))

    @property
    def _most_beside(self) -> int:
        try:
            return int(self._neighbours.read_text())
        except (OSError, ValueError):
            return 0

    def poll(self) -> bool:
        """Whether the cell has ended, with its result or its failure written; starts the test after the training."""
        status = self._process.poll()
        if status is None:
            return False
        if status == 0 and self._tests and self._log.name == "fit.log":
            self._log = self.folder / "test.log"
            checkpoint = str(latest_checkpoint(self.folder))
            place = ("--trainer.logger.save_dir", str(self.folder), "--trainer.logger.name", "")
            logger = ("--trainer.logger", "TensorBoardLogger", *place, "--trainer.logger.version", TEST_FOLDER)
            self._process = self._start("test", "--config", str(self._config), "--ckpt_path", checkpoint, *logger)
            return False
        if status == 0:
            run = self._follower.run
            if run is None and self.resumed_from is not None:  # it was stopped after its last step: nothing was left
                run = self.resumed_from.parents[1]
            finish(self.cell, self.folder, run, self._most_beside if self._is_watched else None)
        else:
            fail(self.folder, self._reason(status))
        os.close(self._lock)
        return True

    def _reason(self, status: int) -> str:
        if status < 0:
            return f"killed by {signal.Signals(-status).name}"
        said = [line for line in _tail(self._log).splitlines() if line.strip()]
        errors = [line for line in said if line.startswith("error: ")]
        return (errors or said or [f"exit status {status}"])[-1].removeprefix("error: ")

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the cell's processes."""
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)

    @property
    def alive(self) -> bool:
        """Whether its process is running."""
        return self._process.poll() is None

    def abandon(self) -> None:
        """Release a cell whose process was told to stop and has ended; what it saved is kept for the next attempt."""
        os.close(self._lock)


def lock_cell(folder: Path) -> int | None:
    """Lock a cell's folder; returns the lock's descriptor, or None where a process still works in it.

    A link to a trial that was deleted is removed; the cell is then trained.
    """
    if folder.is_symlink() and not folder.exists():
        folder.unlink(missing_ok=True)
    return try_lock(folder / "lock")


def latest_checkpoint(folder: Path) -> Path | None:
    """The most recent ``last.ckpt`` of all attempts at a cell; None where there is none."""
    found = [run / "checkpoints/last.ckpt" for run in run_folders(folder)]
    found = [path for path in found if path.is_file()]
    return max(found, key=lambda path: path.stat().st_mtime_ns) if found else None


def _tail(log: Path, size: int = 20_000) -> str:
    """The end of a log."""
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - size))
        return file.read().decode("utf-8", "replace")
