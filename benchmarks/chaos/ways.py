"""The ways in which a run is ended, and how it must answer each of them."""

import errno
import random
import re
import shutil
import signal
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from benchmarks.chaos.processes import Process
from benchmarks.chaos.subject import Victim

SECONDS_TO_ANSWER = 120.0
_LONGEST_LINE = 300


class Way(ABC):
    """A way to end a run."""

    name: str
    needs_small_disk = False
    """Whether it fills the disk, which must then be one of its own."""
    forgets = False
    """Whether it takes away what the run had kept."""

    def suits(self, subject: type[Victim]) -> bool:
        """Whether ``subject`` can be hit so."""
        return True

    @abstractmethod
    def strike(self, process: Process, subject: Victim, folder: Path, draw: random.Random) -> None:
        """Hit the run."""

    @abstractmethod
    def faults(self, process: Process, done: bool) -> Iterator[str]:
        """What is wrong with how the ended run answered; ``done`` says whether it had finished its work."""

    def clean_up(self, subject: Victim, folder: Path) -> None:  # noqa: B027 - most ways leave nothing
        """Make the run's place fit to resume in."""


class Kill(Way):
    """SIGKILL to the first process, or to any one of its children."""

    def __init__(self, child: bool = False) -> None:
        self.child = child
        self.name = "SIGKILL of a child" if child else "SIGKILL"

    def suits(self, subject: type[Victim]) -> bool:
        return subject.has_children or not self.child

    def strike(self, process: Process, subject: Victim, folder: Path, draw: random.Random) -> None:
        family = process.family()
        process.signal(signal.SIGKILL, [draw.choice(family[1:] or family) if self.child else process.pid])

    def faults(self, process: Process, done: bool) -> Iterator[str]:
        # the family of a killed child may end by its own error, or be killed by Lightning; a finished one with 0
        allowed = (-signal.SIGKILL, 1, 0) if self.child else (-signal.SIGKILL, 0)
        if process.status not in allowed or (process.status == 0 and not done):
            yield f"exit status {process.status} after {self.name}"


class Ask(Way):
    """A signal that asks to stop: Ctrl-C and a closed terminal reach all of the foreground, SIGTERM the first process.

    Args:
        number: The signal.
        times: How often, a random part of a second apart.
    """

    def __init__(self, number: signal.Signals, times: int = 1) -> None:
        self.number = number
        self.times = times
        self.name = number.name if times == 1 else f"{number.name} twice"

    def strike(self, process: Process, subject: Victim, folder: Path, draw: random.Random) -> None:
        for time_of in range(self.times):
            if time_of:
                time.sleep(draw.uniform(0.01, 0.3))
            if process.ended():
                return
            with suppress(ProcessLookupError):
                process.signal(self.number, [process.pid] if self.number == signal.SIGTERM else process.foreground())

    def faults(self, process: Process, done: bool) -> Iterator[str]:
        said = process.said()
        if process.status == 0 and done:
            return
        if process.status == -self.number and not said:
            return  # the interpreter had not yet come to the first line of the package
        if process.status != 130:
            yield f"exit status {process.status} after {self.name}, last line {said[-1:]}"
        elif not said or not said[-1].startswith("stopped") or len(said[-1]) > _LONGEST_LINE:
            yield f"no line about the stop after {self.name}, but {said[-1:]}"
        yield from _tracebacks(process)


class _Broken(Way):
    """Something that the run needs is taken away: it ends with one line and exit status 1, or does without."""

    def faults(self, process: Process, done: bool) -> Iterator[str]:
        said = process.said()
        if process.status == 0:
            return
        errors = [line for line in said if line.startswith("error: ")]
        # what it was about to resume from may be gone when it starts
        gone = process.status == 2 and "does not exist" in "".join(errors[-1:])
        if process.status != 1 and not gone:
            yield f"exit status {process.status} after {self.name}, last line {said[-1:]}"
        if not errors or len(errors[-1]) > _LONGEST_LINE:
            yield f"no line about the error after {self.name}, but {said[-1:]}"
        yield from _tracebacks(process)


class FullDisk(_Broken):
    """The file system of the run is filled to its last byte."""

    name = "full disk"
    needs_small_disk = True

    def strike(self, process: Process, subject: Victim, folder: Path, draw: random.Random) -> None:
        with (folder / "ballast").open("wb", buffering=0) as file:
            for size in (1 << 20, 1 << 12, 1 << 8):
                with suppress(OSError):
                    while file.write(bytes(size)) == size:
                        pass

    def clean_up(self, subject: Victim, folder: Path) -> None:
        (folder / "ballast").unlink()


class Deleted(_Broken):
    """The newest run folder, or a folder in it, is deleted while the run goes on.

    Args:
        inner: The folder in it; all of it if empty.
    """

    def __init__(self, inner: str = "") -> None:
        self.inner = inner
        self.name = f"deleted {inner} folder" if inner else "deleted run folder"

    forgets = True

    def suits(self, subject: type[Victim]) -> bool:
        return not self.inner or self.inner in subject.inner_folders

    def strike(self, process: Process, subject: Victim, folder: Path, draw: random.Random) -> None:
        if (newest := _newest(subject, folder)) is not None:
            _delete(newest / self.inner)

    def clean_up(self, subject: Victim, folder: Path) -> None:
        """A run that was deleted is not resumed."""
        if not self.inner and not subject.done(folder) and (newest := _newest(subject, folder)) is not None:
            _delete(newest)


def _newest(subject: Victim, folder: Path) -> Path | None:
    found = [path for pattern in subject.run_folders for path in folder.glob(pattern)]
    return max(found, key=lambda path: path.stat().st_mtime_ns, default=None)


def _delete(folder: Path) -> None:
    """Delete a folder into which a process may be writing."""
    while folder.exists():
        try:
            shutil.rmtree(folder)
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.ENOENT):
                raise


def _tracebacks(process: Process) -> Iterator[str]:
    text = "\n".join(process.said())
    if re.search(r"^\s*(Traceback|Exception ignored)", text, re.M):
        yield f"a traceback: {text[-2000:]}"


WAYS: tuple[Way, ...] = (
    Kill(),
    Ask(signal.SIGTERM),
    Ask(signal.SIGINT),
    Ask(signal.SIGHUP),
    Ask(signal.SIGINT, times=2),
    FullDisk(),
    Deleted(),
    Deleted("checkpoints"),
    Kill(child=True),
)
