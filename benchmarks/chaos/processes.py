"""Real processes of ``lightning-gpt``: started, signalled with all that belong to them, and looked for afterwards."""

import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
_MARK = "LIGHTNING_GPT_CHAOS"
_SECONDS_TO_END = 120.0


class Process:
    """A running command. It is a fork of a process that has imported the package, or has an interpreter of its own.

    Args:
        args: What follows ``lightning-gpt``.
        folder: The folder that it runs in.
        output: The file for its standard output and error.
        forks: The server to fork it from; None for an interpreter of its own, whose start takes seconds.
    """

    def __init__(self, args: Sequence[str], folder: Path, output: Path, forks: "Forks | None") -> None:
        self.folder = folder
        self.output = output
        self.status: int | None = None
        self.seen: set[int] = set()
        environment = {**os.environ, **_ENVIRONMENT, _MARK: str(folder)}
        with output.open("wb") as file:
            self._popen = None
            self._forks = forks
            if forks is None:
                command = [sys.executable, "-m", "lightning_gpt", *args]
                self._popen = subprocess.Popen(
                    command,
                    cwd=folder,
                    env=environment,
                    stdin=subprocess.DEVNULL,
                    stdout=file,
                    stderr=file,
                    start_new_session=True,
                    preexec_fn=_hear_all_signals,
                )
                self.pid = self._popen.pid
            else:
                self.pid = forks.start(args, folder, environment, file.fileno())

    def ended(self, seconds: float = 0.0) -> bool:
        """Whether it has ended, or does so within ``seconds``; ``status`` is then its exit status."""
        if self.status is None and self._popen is not None:
            with suppress(subprocess.TimeoutExpired):
                self.status = self._popen.wait(seconds) if seconds else self._popen.poll()
        elif self.status is None and self._forks is not None:
            self.status = self._forks.status(seconds)
        return self.status is not None

    def family(self) -> list[int]:
        """Its process number and those of its descendants, oldest first."""
        found = [self.pid]
        parents = dict(_parents())
        for pid in sorted(parents):
            if parents[pid] in found:
                found.append(pid)
        self.seen.update(found)
        return found

    def signal(self, number: signal.Signals, pids: Sequence[int]) -> None:
        """Send a signal to ``pids``."""
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, number)

    def foreground(self) -> list[int]:
        """Those of its family that a terminal's Ctrl-C reaches: they share its process group."""
        group = os.getpgid(self.pid)
        found = []
        for pid in self.family():
            with suppress(ProcessLookupError):
                if os.getpgid(pid) == group:
                    found.append(pid)
        return found

    def orphans(self, seconds: float) -> list[int]:
        """The processes that it has left behind and that do not end within ``seconds``."""
        end = time.monotonic() + seconds
        while left := [pid for pid in _marked(self.folder) if pid != self.pid]:
            if time.monotonic() > end:
                return left
            time.sleep(0.1)
        return []

    def said(self) -> list[str]:
        """The lines that it has printed."""
        return self.output.read_text("utf-8", "replace").splitlines()

    def close(self) -> None:
        """Kill what is left of it."""
        for pid in [*([] if self.status is not None else [self.pid]), *_marked(self.folder)]:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.ended(_SECONDS_TO_END)


_ENVIRONMENT = {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1", "COLUMNS": "300"}


class Forks:
    """The server of ``tests.fork_server``, for commands that start without seconds of imports, one at a time."""

    def __init__(self) -> None:
        self._calls, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        environment = {**os.environ, **_ENVIRONMENT}
        command = [sys.executable, "-m", "tests.fork_server"]
        with theirs:
            self._server = subprocess.Popen(
                command,
                cwd=ROOT,
                env=environment,
                stdin=theirs.fileno(),
                start_new_session=True,
                preexec_fn=_hear_all_signals,
            )

    def start(self, args: Sequence[str], folder: Path, environment: dict[str, str], output: int) -> int:
        """Start ``lightning-gpt args``; returns its process number."""
        call: dict[str, Any] = {"module": "lightning_gpt", "args": args, "cwd": str(folder), "environment": environment}
        self._answers, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs, open(os.devnull) as nothing:
            files = [nothing.fileno(), output, output, theirs.fileno()]
            socket.send_fds(self._calls, [json.dumps(call).encode()], files)
        return int(self._answers.recv(64))

    def status(self, seconds: float) -> int | None:
        """The exit status of the command that runs; None if it does not end within ``seconds``."""
        ready, _, _ = select.select([self._answers], [], [], seconds)
        return int(self._answers.recv(64)) if ready else None

    def close(self) -> None:
        """End the server."""
        self._calls.close()
        self._server.wait()


def _hear_all_signals() -> None:
    """Undo ``nohup``, and a shell's ``&``, whose children ignore signals."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


def _parents() -> Iterator[tuple[int, int]]:
    """Every process with its parent."""
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            with suppress(OSError):
                after_name = Path(entry.path, "stat").read_text().rpartition(")")[2].split()
                yield int(entry.name), int(after_name[1])


def _marked(folder: Path) -> list[int]:
    """The living processes whose environment names ``folder``: descendants of a command, however they were started."""
    mark, found = f"{_MARK}={folder}".encode(), []
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            with suppress(OSError):
                if mark in Path(entry.path, "environ").read_bytes().split(b"\0"):
                    found.append(int(entry.name))
    return found
