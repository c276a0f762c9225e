"""Running the real command in real processes, and reading what a run left behind."""

import contextlib
import functools
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests.fork_server import Fork, module_of
from tests.shared_server import ADDRESS, COMMON, start_server

COMMAND = [sys.executable, "-m", "lightning_gpt"]


def environment(changes: Mapping[str, str | None] = {}) -> dict[str, str]:
    """The environment of a command: this one, with the Hub out of reach even where there is a network.

    Args:
        changes: Variables to set, or, where the value is None, to remove.
    """
    ours = {**os.environ, **COMMON, **changes}
    return {name: value for name, value in ours.items() if value is not None}


@functools.cache
def _fork_server() -> socket.socket:
    """The socket for calls of the fork server: that of all workers, or else this process's own.

    The server ends when nobody has such a socket any more.
    """
    if ADDRESS in os.environ:
        calls = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        calls.connect(os.environ[ADDRESS])
        return calls
    calls, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        start_server(theirs)
    return calls


def run_forked(
    module: str,
    *args: str,
    cwd: Path,
    timeout: float = 600,
    env: Mapping[str, str | None] = {},
    limits: Mapping[str, int] = {},
    out: str | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run ``python -m module args`` as a fork of a process that has imported the package already.

    Args:
        module: The module.
        args: Its arguments.
        cwd: The folder that it runs in.
        timeout: Seconds after which it is killed.
        env: Changes of the environment, as of :func:`environment`.
        limits: Resource limits by their names in ``resource``, such as ``{"NOFILE": 20}``.
        out: A file to take its standard output, which is then not returned.

    Raises:
        subprocess.TimeoutExpired: It took more than ``timeout`` seconds and was killed.
    """
    calls = _fork_server()
    with contextlib.ExitStack() as stack:
        nothing = stack.enter_context(open(os.devnull))
        output, errors = (stack.enter_context(tempfile.TemporaryFile("w+", errors="replace")) for _ in range(2))
        taken = output if out is None else stack.enter_context(open(out, "w"))
        files = [file.fileno() for file in (nothing, taken, errors)]
        fork = Fork(calls, {**_call(module, args, cwd, env), "limits": dict(limits)}, files)
        try:
            status, in_time = fork.wait(timeout), True
        except subprocess.TimeoutExpired:
            fork.send_signal(signal.SIGKILL)
            status, in_time = fork.wait(), False
        output.seek(0)
        errors.seek(0)
        done = subprocess.CompletedProcess([module, *args], status, output.read(), errors.read())
    if not in_time:
        raise subprocess.TimeoutExpired(done.args, timeout, done.stdout, done.stderr)
    return done


def _call(module: str, args: Sequence[str], cwd: Path, env: Mapping[str, str | None]) -> dict[str, Any]:
    return {"module": module, "args": args, "cwd": str(cwd), "environment": environment(env), "processes": True}


def run_command(
    *args: str, cwd: Path, timeout: float = 600, fresh: bool = False, env: Mapping[str, str | None] = {}
) -> subprocess.CompletedProcess[str]:
    """Run ``lightning-gpt args`` to its end.

    Args:
        args: What is typed after ``lightning-gpt``.
        cwd: The folder that it is typed in.
        timeout: Seconds after which it is killed and the test fails.
        fresh: In an interpreter of its own, with its seconds of imports, rather than a fork; each command is called
            so at least once, since a fork does not show an import that is missing.
        env: Changes of the environment, as of :func:`environment`. In a fork they change nothing that is read at
            start-up, such as ``PYTHONOPTIMIZE`` or ``OMP_NUM_THREADS``.
    """
    if not fresh:
        return run_forked("lightning_gpt", *args, cwd=cwd, timeout=timeout, env=env)
    return subprocess.run(
        [*COMMAND, *args], cwd=cwd, env=environment(env), capture_output=True, text=True, timeout=timeout, check=False
    )


def must_run(
    *args: str, cwd: Path, timeout: float = 600, fresh: bool = False, env: Mapping[str, str | None] = {}
) -> subprocess.CompletedProcess[str]:
    """Run ``lightning-gpt args`` and fail with its output where its exit status is not 0."""
    done = run_command(*args, cwd=cwd, timeout=timeout, fresh=fresh, env=env)
    assert done.returncode == 0, f"exit status {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done


def start_forked(
    command: Sequence[str], cwd: Path, env: Mapping[str, str], stdout: IO[bytes], stderr: IO[bytes]
) -> Fork:
    """Start ``python -m MODULE ARGUMENTS`` as ``subprocess.Popen`` does, but as a fork."""
    calls = _fork_server()
    module, args = module_of(command)
    with open(os.devnull) as nothing:
        files = (nothing.fileno(), stdout.fileno(), stderr.fileno())
        return Fork(calls, {"module": module, "args": args, "cwd": str(cwd), "environment": dict(env)}, files)


class Started(Fork):
    """A command that runs as a fork, with its output and errors in one pipe.

    Args:
        args: What is typed after ``lightning-gpt``.
        cwd: The folder that it is typed in.
    """

    def __init__(self, args: Sequence[str], cwd: Path) -> None:
        calls = _fork_server()
        ours, theirs = os.pipe()
        self._output = os.fdopen(ours, "rb", buffering=0)
        with open(theirs, "wb") as taken, open(os.devnull) as nothing:
            files = (nothing.fileno(), taken.fileno(), taken.fileno())
            super().__init__(calls, _call("lightning_gpt", args, cwd, {}), files)

    def communicate(self, timeout: float | None = None) -> tuple[str, None]:
        """What it and its descendants say until all have ended, as ``subprocess.Popen.communicate`` returns it.

        Raises:
            subprocess.TimeoutExpired: They run longer than ``timeout`` seconds.
        """
        end = None if timeout is None else time.monotonic() + timeout
        said = b""
        with self._output:
            while True:
                left = None if end is None else max(0.0, end - time.monotonic())
                if not select.select([self._output], [], [], left)[0]:
                    raise subprocess.TimeoutExpired(str(self.args), timeout or 0.0, said)
                if not (more := self._output.read(1 << 16)):
                    break
                said += more
        self.wait(timeout)
        return said.decode(errors="replace"), None


def start_command(*args: str, cwd: Path) -> Started:
    """Start ``lightning-gpt args`` as a fork, as :func:`run_command` does, and leave it running."""
    return Started(args, cwd)


def start_fresh_command(*args: str, cwd: Path, process_group: int | None = None) -> subprocess.Popen[str]:
    """Start ``lightning-gpt args`` in an interpreter of its own and leave it running."""
    return subprocess.Popen(
        [*COMMAND, *args],
        cwd=cwd,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        process_group=process_group,
    )


def scalars(run: Path) -> dict[tuple[str, int], float]:
    """Every scalar of a run's event files by tag and step; speed and cost, which no two runs share, are left out."""
    events = EventAccumulator(str(run), size_guidance={"scalars": 0})
    events.Reload()
    return {
        (tag, event.step): event.value
        for tag in events.Tags()["scalars"]
        if tag not in ("train/tokens_per_second", "train/mfu", "layers/share_of_time") and not tag.startswith("cost/")
        for event in events.Scalars(tag)
    }


def write_config(path: Path, content: dict[str, Any]) -> Path:
    """Write a YAML config; returns its path."""
    path.write_text(yaml.safe_dump(content))
    return path


def tiny_corpus(path: Path, documents: int = 60) -> Path:
    """A ``.jsonl`` file of small documents of made-up words, the same every time."""
    import random

    words = random.Random(0)
    vocabulary = ["".join(words.choices("abcdefghij", k=words.randint(2, 6))) for _ in range(200)]
    with path.open("w") as file:
        for _ in range(documents):
            text = " ".join(words.choices(vocabulary, k=words.randint(50, 200))) + "."
            file.write(json.dumps({"text": text}) + "\n")
    return path


def tiny_config(corpus: Path, **trainer: Any) -> dict[str, Any]:
    """A run of a small GPT with dropout on ``corpus``, a second or two long."""
    return {
        "name": "tiny",
        "seed_everything": 1,
        "trainer": {
            "max_steps": 60,
            "max_epochs": -1,
            "val_check_interval": 20,
            "check_val_every_n_epoch": None,
            "accelerator": "cpu",
            "devices": 1,
            "precision": "32-true",
            "log_every_n_steps": 1,
            **trainer,
        },
        "model": {
            "class_path": "GPTModule",
            "init_args": {"n_layer": 2, "n_head": 2, "dim": 32, "block_size": 32, "dropout": 0.1},
        },
        "data": {
            "tokenizer": 300,
            "batch_size": 4,
            "val_share": 0.1,
            "test_share": 0.1,
            "eval_tokens": 1024,  # of a validation every 20 steps
            "shuffle_window": 64,
            "sources": [{"class_path": "Files", "init_args": {"paths": str(corpus)}}],
        },
        "checkpoints": {"every_n_steps": 5},
        "samples": {"max_new_tokens": 4},
        "diagnostics": {
            "enabled": False
        },  # a quarter of the time of so small a run; the tests of what it does ask for it
    }
