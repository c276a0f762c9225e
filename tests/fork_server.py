"""Commands without their seconds of imports: a process that has imported everything, and a fork of it for every call.

A fork is what ``python -m MODULE ARGUMENTS`` would be: its own folder, environment, arguments, standard input and
output, and the interpreter's exit status. Three things differ, and are what fresh processes stay needed for: what a
module forgets to import may be there all the same; all forks of one server share the seed of ``hash``, so an order
taken from a set is the same in each of them; and after its threads and its exit handlers a fork ends
without taking its modules apart, which would copy nearly all memory that it shares, a third of a second for each.

``python -m tests.fork_server`` takes its calls from the socket that is its standard input until the other side closes
it; ``tests.processes`` is the other side. Where that socket listens, it takes those of everyone who connects, until
nobody is left. Each call brings a socket of its own, which gets the process number of the fork and, when it has ended,
its exit status.

A fork that starts further processes of a run, as Lightning does for each device, has this server fork those, too. They
are not its children, so the server ends them with it.
"""

import atexit
import gc
import importlib
import json
import os
import resource
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

from lightning_gpt.commands.train import _FIRST_PROCESS
from lightning_gpt.data.sources.embedded import WikipediaSlice

_COMMANDS = (
    *("bench", "convert", "generate", "inspect", "lightning_cli", "prepare", "serve", "study", "study_check"),
    *("tokenizer", "train"),
)
# what the commands import only when they need it
_LATE = (
    *("datasets", "datasketch", "gensim.corpora.wikicorpus", "matplotlib.pyplot", "pyarrow.parquet", "rich.progress"),
    *("tensorboard.backend.event_processing.event_accumulator", "tokenizers"),
    *(
        "lightning_gpt.serving.server",
        "lightning_gpt.serving.app",
        "uvicorn.lifespan.on",
        "uvicorn.protocols.http.h11_impl",
    ),
    "encodings.utf_8_sig",  # another user, which a fork may become, may not read the interpreter's files
)


def _import_everything() -> None:
    # read by pyarrow's allocator, which would start a thread of its own
    os.environ["JE_ARROW_MALLOC_CONF"] = "background_thread:false"
    # first: typing takes Union[int, float] and Union[float, int] for one, in the order that it has met first, and in
    # Lightning's order the parser reads a number of batches as a whole number
    import lightning.pytorch  # noqa: F401
    import torch

    from lightning_gpt.training.peak import peak_flops

    for name in (*(f"lightning_gpt.commands.{command}" for command in _COMMANDS), *_LATE):
        importlib.import_module(name)
    # what a process does once, and is not what a test of a command looks at
    next(WikipediaSlice().documents())  # two seconds
    for dtype in (torch.float32, torch.float64):
        peak_flops(torch.device("cpu"), dtype)
    threads = len(list(Path("/proc/self/task").iterdir()))
    if threads != 1:  # a fork has none of them, and would wait for what they hold
        sys.exit(f"the imports have started {threads - 1} threads; nothing may be forked from here")
    gc.freeze()  # no fork looks through, and so copies, what is here already: that would take it seconds at its end


class Fork:
    """A fork of the server, as ``subprocess.Popen`` knows a process.

    Args:
        calls: The socket for calls of the server.
        call: The arguments of :func:`_become`, without its files.
        files: Its standard input, output and error.
    """

    def __init__(self, calls: socket.socket, call: Mapping[str, object], files: Sequence[int]) -> None:
        self.args = call["args"]
        self.returncode: int | None = None
        self._answers, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with theirs:
            socket.send_fds(calls, [json.dumps(call).encode()], [*files, theirs.fileno()])
        self.pid = self._answer()

    def _answer(self) -> int:
        answer = self._answers.recv(64)
        assert answer, "the fork server has ended; its standard error says why"
        return int(answer)

    def poll(self) -> int | None:
        """Its exit status; None while it runs."""
        with suppress(subprocess.TimeoutExpired):
            self.wait(0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Its exit status.

        Raises:
            subprocess.TimeoutExpired: It runs longer than ``timeout`` seconds.
        """
        if self.returncode is None:
            ready, _, _ = select.select([self._answers], [], [], timeout)
            if not ready:
                raise subprocess.TimeoutExpired(str(self.args), timeout or 0.0)
            self.returncode = self._answer()
            self._answers.close()
        return self.returncode

    def kill(self) -> None:
        """Kill it, if it runs."""
        self.send_signal(signal.SIGKILL)

    def send_signal(self, number: int) -> None:
        """Send it a signal, if it runs."""
        if self.poll() is None:
            with suppress(ProcessLookupError):  # it has just ended
                os.kill(self.pid, number)


def module_of(command: Sequence[str]) -> tuple[str, list[str]]:
    """The module and the arguments of ``python -m MODULE ARGUMENTS``."""
    _, option, module, *args = command
    assert option == "-m", command
    return module, args


class _ForkingSubprocess:
    """Stands for ``subprocess`` in Lightning's launcher.

    Args:
        calls: The socket for calls of the server.
    """

    def __init__(self, calls: socket.socket) -> None:
        self._calls = calls

    def Popen(self, command: list[str], env: dict[str, str], cwd: str | None) -> Fork:  # noqa: N802
        """Have ``python -m MODULE ARGUMENTS`` forked by the server."""
        module, args = module_of(command)
        env.pop(_FIRST_PROCESS, None)  # it would look for its parent
        call = {"module": module, "args": args, "cwd": cwd or os.getcwd(), "environment": env, "first": os.getpid()}
        return Fork(self._calls, call, (0, 1, 2))


def _become(
    module: str,
    args: list[str],
    cwd: str,
    environment: dict[str, str],
    handles: list[int],
    limits: Mapping[str, int] = {},
    processes: bool = False,
    calls: socket.socket | None = None,
    first: int | None = None,
) -> NoReturn:
    """Turn this process into ``python -m module args``, under resource limits such as ``{"NOFILE": 20}``.

    With ``processes``, the processes of further devices of a run are forks of the server, made through ``calls``. Those
    have the ``first`` process of their run.
    """
    for number, handle in enumerate(handles):
        os.dup2(handle, number)
        os.close(handle)
    if processes:
        from lightning.pytorch.strategies.launchers import subprocess_script

        assert calls is not None
        subprocess_script.subprocess = _ForkingSubprocess(calls)  # type: ignore[attr-defined]
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    tempfile.tempdir = None  # it is found once, from the environment
    if "PYTHONIOENCODING" in environment:  # as the interpreter does at its start
        for stream in (sys.stdin, sys.stdout):
            stream.reconfigure(encoding=environment["PYTHONIOENCODING"])  # type: ignore[union-attr]
    for name, value in limits.items():
        resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (value, value))
    sys.path[0] = cwd
    sys.argv[1:] = args
    status: object = 0
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as end:
        status = end.code or 0
        if not isinstance(status, int):  # a message, which the interpreter prints
            raise
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    os._exit(status & 0xFF)  # nothing is left to flush: the server, and so its forks, write at once


def _serve() -> None:
    given = socket.socket(fileno=0)
    listens = bool(given.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))
    callers = {given.accept()[0] if listens else given}
    of_forks, for_forks = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    # by a descriptor of the process: its number, who waits for it, and the first process of its run
    running: dict[int, tuple[int, socket.socket, int | None]] = {}
    while callers:
        for ready in select.select([of_forks, *running, *({given} | callers)], [], [])[0]:  # one of a pair is both
            if ready is given and listens:
                callers.add(given.accept()[0])
                continue
            if isinstance(ready, int):
                pid, answers, _ = running.pop(ready)
                os.close(ready)
                _, status = os.waitpid(pid, 0)
                for other, _, first in running.values():
                    if first == pid:
                        os.kill(other, signal.SIGKILL)
                with answers, suppress(BrokenPipeError):  # nobody waits any more
                    answers.send(str(os.waitstatus_to_exitcode(status)).encode())
                continue
            message, handles, _, _ = socket.recv_fds(ready, 1 << 20, 4)
            if not message:
                callers.remove(ready)
                ready.close()
                continue
            call = json.loads(message)
            pid = os.fork()
            if pid == 0:
                given.detach()  # its number is about to be the fork's standard input
                for caller in callers - {given}:
                    caller.close()
                of_forks.close()
                os.close(handles.pop())
                for descriptor, (_, answers, _) in running.items():
                    os.close(descriptor)
                    answers.close()
                _become(**call, handles=handles, calls=for_forks)
            answers = socket.socket(fileno=handles.pop())
            running[os.pidfd_open(pid)] = (pid, answers, call.get("first"))
            for handle in handles:
                os.close(handle)
            answers.send(str(pid).encode())


if __name__ == "__main__":
    _import_everything()
    _serve()
