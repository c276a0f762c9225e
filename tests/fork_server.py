"""Commands without their seconds of imports: a process that has imported everything, and a fork of it for every call.

A fork is what ``python -m MODULE ARGUMENTS`` would be: its own folder, environment, arguments, standard input and
output, and an end that is the interpreter's own, with its exit status. Two things differ, and are what fresh processes
stay needed for: what a module forgets to import may be there all the same, and all forks of one server share the seed
of ``hash``, so an order taken from a set is the same in each of them.

``python -m tests.fork_server`` takes its calls from the socket that is its standard input, one at a time, until the
other side closes it; ``tests.processes`` is the other side.
"""

import gc
import importlib
import json
import os
import resource
import runpy
import socket
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import NoReturn

_COMMANDS = (
    *("bench", "convert", "generate", "inspect", "lightning_cli", "prepare", "study", "study_check", "tokenizer"),
    "train",
)
# what the commands import only when they need it
_LATE = (
    *("datasets", "datasketch", "gensim.corpora.wikicorpus", "matplotlib.pyplot", "pyarrow.parquet", "rich.progress"),
    *("tensorboard.backend.event_processing.event_accumulator", "tokenizers"),
    "encodings.utf_8_sig",  # another user, which a fork may become, may not read the interpreter's files
)


def _import_everything() -> None:
    # read by pyarrow's allocator, which would start a thread of its own
    os.environ["JE_ARROW_MALLOC_CONF"] = "background_thread:false"
    for name in (*(f"lightning_gpt.commands.{command}" for command in _COMMANDS), *_LATE):
        importlib.import_module(name)
    threads = len(list(Path("/proc/self/task").iterdir()))
    if threads != 1:  # a fork has none of them, and would wait for what they hold
        sys.exit(f"the imports have started {threads - 1} threads; nothing may be forked from here")
    gc.freeze()  # no fork looks through, and so copies, what is here already: that would take it seconds at its end


def _become(
    module: str,
    args: list[str],
    cwd: str,
    environment: dict[str, str],
    handles: list[int],
    limits: Mapping[str, int] = {},
) -> NoReturn:
    """Turn this process into ``python -m module args``, under resource limits such as ``{"NOFILE": 20}``."""
    for number, handle in enumerate(handles):
        os.dup2(handle, number)
        os.close(handle)
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
    runpy.run_module(module, run_name="__main__", alter_sys=True)
    sys.exit()


def _serve() -> None:
    calls = socket.socket(fileno=0)
    while True:
        message, handles, _, _ = socket.recv_fds(calls, 1 << 20, 3)
        if not message:
            return
        pid = os.fork()
        if pid == 0:
            calls.detach()  # its number is about to be the fork's standard input
            _become(**json.loads(message), handles=handles)
        for handle in handles:
            os.close(handle)
        calls.send(str(pid).encode())
        _, status = os.waitpid(pid, 0)
        calls.send(str(os.waitstatus_to_exitcode(status)).encode())


if __name__ == "__main__":
    _import_everything()
    _serve()
