"""How the processes of cells are started.

On Linux a process imports once what every cell needs, and forks itself for each: a cell starts without the seconds that
the imports take, and cells that run at a time share their memory. Elsewhere, where a fork may not call the system's
libraries, each cell is a fresh interpreter.
"""

import atexit
import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from io import TextIOWrapper
from pathlib import Path
from typing import NoReturn, Protocol, Self

from lightning_gpt.errors import WorkError
from lightning_gpt.hardware import nvidia_gpus
from lightning_gpt.stopping import end_on_stop, stop_with

_NEEDED_BY_EACH = ("lightning_gpt.commands.train", "lightning_gpt.commands.lightning_cli")
_LARGEST_MESSAGE = 1 << 20


class Started(Protocol):
    """A process that was started, in a process group of its own."""

    @property
    def pid(self) -> int:
        """Its number, and that of its group."""
        ...

    def poll(self) -> int | None:
        """Its exit status, negative if a signal ended it; None while it runs."""
        ...


class Starter(Protocol):
    """Starts processes that end when the process that it belongs to ends."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...

    def start(self, args: Sequence[str], environment: Mapping[str, str], log: Path, lock: int) -> Started:
        """Start ``lightning-gpt args``.

        Args:
            args: The arguments.
            environment: Changes of the environment.
            log: The file that takes its output.
            lock: A descriptor that it holds open as long as it lives.

        Raises:
            WorkError: It cannot be started.
        """
        ...


class FreshStarter:
    """Starts each process as a new interpreter."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def start(
        self, args: Sequence[str], environment: Mapping[str, str], log: Path, lock: int
    ) -> subprocess.Popen[bytes]:
        with log.open("wb") as output:
            return subprocess.Popen(
                [sys.executable, "-m", "lightning_gpt", *args],
                env={**os.environ, **environment},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                process_group=0,  # so that Ctrl-C reaches the study only, which then asks its cells to save and stop
                pass_fds=(lock,),
                preexec_fn=partial(stop_with, os.getpid()),
            )


class _Fork:
    def __init__(self, pid: int, forks: "ForkStarter") -> None:
        self.pid = pid
        self._forks = forks

    def poll(self) -> int | None:
        return self._forks.status(self.pid)


class ForkStarter:
    """Starts each process as a fork of one that has imported what they need.

    Args:
        environment: Changes of the environment that the imports need, such as the number of threads.
    """

    def __init__(self, environment: Mapping[str, str]) -> None:
        self._calls, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._statuses: dict[int, int] = {}
        sys.stdout.flush()
        sys.stderr.flush()
        if os.fork() == 0:
            self._calls.close()
            os.setpgid(0, 0)
            atexit._clear()
            _run_to_its_end(partial(_serve, theirs, environment))
        theirs.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._calls.close()

    def start(self, args: Sequence[str], environment: Mapping[str, str], log: Path, lock: int) -> _Fork:
        call = json.dumps({"args": list(args), "environment": dict(environment)}).encode()
        with log.open("wb") as output:
            try:
                socket.send_fds(self._calls, [call], [output.fileno(), lock])
            except BrokenPipeError:
                raise self._ended() from None
        while True:
            answer = self._receive()
            if "started" in answer:
                self._statuses.pop(answer["started"], None)  # of an earlier process of the same number
                return _Fork(answer["started"], self)

    def status(self, pid: int) -> int | None:
        """The exit status of a process; None while it runs."""
        while pid not in self._statuses and select.select([self._calls], [], [], 0)[0]:
            self._receive()
        return self._statuses.get(pid)

    def _receive(self) -> dict[str, int]:
        with suppress(ConnectionResetError):
            message = self._calls.recv(_LARGEST_MESSAGE)
            if message:
                answer: dict[str, int] = json.loads(message)
                if "ended" in answer:
                    self._statuses[answer["ended"]] = answer["status"]
                return answer
        raise self._ended()

    def _ended(self) -> WorkError:
        return WorkError("the process that starts the cells has ended (was it killed, or out of memory?)")


def may_fork() -> bool:
    """Whether this process may be forked: on Linux, while it has one thread, because a fork would have no other.

    Not on a machine with NVIDIA GPUs: what a library has begun to do with a GPU does not survive a fork.
    """
    return sys.platform == "linux" and threading.active_count() == 1 and not nvidia_gpus()


def starter(environment: Mapping[str, str]) -> Starter:
    """What starts processes from this process."""
    return ForkStarter(environment) if may_fork() else FreshStarter()


def _run_to_its_end(work: Callable[[], None]) -> NoReturn:
    """Do the work of a fork and end as the interpreter does; nothing of what it was forked from goes on in it."""
    status = 1
    try:
        work()
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError):  # a full disk
                stream.flush()
        os._exit(status)


def _serve(calls: socket.socket, environment: Mapping[str, str]) -> None:
    """Import what cells need, then fork for each call until the other side is closed."""
    end_on_stop()
    # a service manager sends it to every process: the study then needs this one until its cells have saved; when the
    # study has ended, the other side is closed
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    os.environ.update(environment)
    # read by pyarrow's allocator, which would start a thread
    os.environ.setdefault("JE_ARROW_MALLOC_CONF", "background_thread:false")
    for module in _NEEDED_BY_EACH:
        importlib.import_module(module)
    gc.freeze()  # no fork looks through, and so copies, what is here already
    woken, wake = os.pipe2(os.O_NONBLOCK)
    signal.set_wakeup_fd(wake)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    while True:
        ready, _, _ = select.select([calls.fileno(), woken], [], [])
        if woken in ready:
            os.read(woken, _LARGEST_MESSAGE)
            for pid, status in _ended_children():
                calls.send(json.dumps({"ended": pid, "status": status}).encode())
        if calls.fileno() in ready:
            message, descriptors, _, _ = socket.recv_fds(calls, _LARGEST_MESSAGE, 2)
            if not message:
                return
            server = os.getpid()
            pid = os.fork()
            if pid == 0:
                signal.set_wakeup_fd(-1)
                for number in (signal.SIGCHLD, signal.SIGTERM):
                    signal.signal(number, signal.SIG_DFL)
                for unused in (calls.detach(), woken, wake):
                    os.close(unused)
                stop_with(server)
                _run_to_its_end(partial(_become, **json.loads(message), output=descriptors[0]))
            with suppress(OSError):  # it has ended already
                os.setpgid(pid, pid)  # here too, so that the group is there when its number is known
            for descriptor in descriptors:
                os.close(descriptor)
            calls.send(json.dumps({"started": pid}).encode())


def _ended_children() -> Iterator[tuple[int, int]]:
    with suppress(ChildProcessError):  # there are none
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                return
            yield pid, os.waitstatus_to_exitcode(status)


def _become(args: list[str], environment: Mapping[str, str], output: int) -> None:
    """Turn this process into ``python -m lightning_gpt args``."""
    os.setpgid(0, 0)  # so that Ctrl-C reaches the study only, which then asks its cells to save and stop
    os.environ.update(environment)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for descriptor, number in ((nothing, 0), (output, 1), (output, 2)):
        os.dup2(descriptor, number)
    for descriptor in (nothing, output):
        os.close(descriptor)
    for stream in (sys.stdout, sys.stderr):
        assert isinstance(stream, TextIOWrapper)
        stream.reconfigure(line_buffering=True)  # people read the log while it grows
    if not sys.flags.safe_path:
        sys.path.insert(0, os.getcwd())  # as the interpreter does; the package takes it away again
    sys.argv[1:] = args
    runpy.run_module("lightning_gpt", run_name="__main__", alter_sys=True)
