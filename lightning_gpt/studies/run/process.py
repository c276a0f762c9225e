"""One cell as a process: started or resumed, watched, stopped."""

import ctypes
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import yaml

from lightning_gpt.studies.run.locks import try_lock
from lightning_gpt.studies.run.results import fail, finish, run_folders
from lightning_gpt.studies.spec.cells import Cell
from lightning_gpt.whole_file import write_file

_COMMAND = (sys.executable, "-m", "lightning_gpt")
_STEP = re.compile(r"^step ([\d,]+)(?:/([\d,]+))?  loss ([\d.]+|nan|inf)", re.M)
_TESTED = re.compile(r"^(test/\w+) ([-\d.einfa+]+)$", re.M)
_PR_SET_PDEATHSIG = 1  # linux/prctl.h


@dataclass(frozen=True)
class Progress:
    """How far a running cell is, as far as it has said."""

    step: int = 0
    steps: int | None = None
    loss: str = ""

    @property
    def share(self) -> float:
        """The share of its steps that is done."""
        return self.step / self.steps if self.steps else 0.0


class CellProcess:
    """``lightning-gpt fit`` on one cell and, where test figures are wanted, ``lightning-gpt test`` after it.

    What the processes say is in ``fit.log`` and ``test.log`` of the cell's folder. They end when the process that
    started them ends, and hold the cell's lock as long as they live.

    Args:
        cell: The cell.
        folder: Its folder.
        lock: The descriptor of the cell's lock; see :func:`lock_cell`.
        config: What is run, the cell's configuration with the study's own files put in.
        environment: Variables of the process: its threads and GPUs.
        tests: Whether the test split is measured after the training.
    """

    def __init__(
        self, cell: Cell, folder: Path, lock: int, config: dict[str, object], environment: dict[str, str], tests: bool
    ) -> None:
        self.cell = cell
        self.folder = folder
        self.resumed_from = latest_checkpoint(folder)
        self._lock = lock
        self._environment = {**os.environ, **environment, "PYTHONUNBUFFERED": "1"}
        self._tests = tests
        self._started = time.monotonic()
        self._config = folder / "config.yaml"
        write_file(self._config, yaml.safe_dump(config, sort_keys=False, allow_unicode=True))
        checkpoint = () if self.resumed_from is None else ("--ckpt_path", str(self.resumed_from))
        self._log = folder / "fit.log"
        self._process = self._start("fit", "--config", str(self._config), "--name", str(folder.resolve()), *checkpoint)

    def _start(self, *args: str) -> subprocess.Popen[bytes]:
        with self._log.open("wb") as log:
            return subprocess.Popen(
                [*_COMMAND, *args],
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                process_group=0,  # Ctrl-C is for the study, which asks its cells to save and stop
                pass_fds=(self._lock,),
                preexec_fn=_stop_with(os.getpid()),
            )

    @property
    def seconds(self) -> float:
        """How long it has been running."""
        return time.monotonic() - self._started

    def progress(self) -> Progress:
        """What the process last said of its steps."""
        said = _STEP.findall(_tail(self._log))
        if not said:
            return Progress()
        step, steps, loss = said[-1]
        return Progress(int(step.replace(",", "")), int(steps.replace(",", "")) if steps else None, loss)

    def poll(self) -> bool:
        """Whether the cell has ended, with its result or its failure written; starts the test after the training."""
        status = self._process.poll()
        if status is None:
            return False
        if status == 0 and self._tests and self._log.name == "fit.log":
            self._log = self.folder / "test.log"
            checkpoint = str(latest_checkpoint(self.folder))
            self._process = self._start("test", "--config", str(self._config), "--ckpt_path", checkpoint)
            return False
        if status == 0:
            tested = _TESTED.findall(_tail(self._log)) if self._tests else []
            finish(self.cell, self.folder, {tag: float(value) for tag, value in tested})
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
        """Leave a cell whose process was told to stop and has ended; what it did is kept for the next time."""
        os.close(self._lock)


def lock_cell(folder: Path) -> int | None:
    """The lock of a cell's folder; None where a process is still at work in it."""
    return try_lock(folder / "lock")


def latest_checkpoint(folder: Path) -> Path | None:
    """The ``last.ckpt`` that was written last by any attempt at a cell; None where there is none."""
    found = [run / "checkpoints/last.ckpt" for run in run_folders(folder)]
    found = [path for path in found if path.is_file()]
    return max(found, key=lambda path: path.stat().st_mtime_ns) if found else None


def _stop_with(parent: int) -> Callable[[], None] | None:
    """What a new process does first: ask Linux for SIGTERM, at which ``fit`` saves and stops, when ``parent`` ends."""
    if sys.platform != "linux":
        return None
    prctl = ctypes.CDLL(None).prctl

    def set_signal() -> None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:  # it ended before the call
            os._exit(1)

    return set_signal


def _tail(log: Path, size: int = 20_000) -> str:
    """The end of a log."""
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - size))
        return file.read().decode("utf-8", "replace")
