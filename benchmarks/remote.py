"""Asking a worker process."""

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Any

from lightning_gpt.errors import CallError, WorkError

_ROOT = str(Path(__file__).parents[1])
# another environment's Python finds this package after its own packages, so that it keeps its versions of all others
_PROGRAM = f"import sys; sys.path.append({_ROOT!r}); from benchmarks.worker import main; main()"


class RemoteWorker:
    """A fresh process that answers what :class:`~benchmarks.worker.Worker` has methods for.

    Args:
        python: Its interpreter; this process's own when None.
        threads: How many threads it computes with.
    """

    def __init__(self, python: str | None, threads: int) -> None:
        self._said = tempfile.TemporaryFile("w+")  # noqa: SIM115 - a pipe that nobody reads would fill and block it
        try:
            self._process = subprocess.Popen(
                [python or sys.executable, "-c", _PROGRAM],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._said,
                text=True,
            )
        except OSError as error:
            raise CallError(f"litgpt_python is {python!r}, which cannot be run: {error.strerror}") from None
        self.ask("threads", number=threads)

    def ask(self, method: str, **arguments: Any) -> Any:
        """What the worker answers.

        Raises:
            WorkError: Where the worker failed or ended.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps({"ask": method, **arguments}) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            self._process.wait()
            self._said.seek(0)
            last = (self._said.read().strip().splitlines() or ["it said nothing"])[-1]
            raise WorkError(f"a benchmark process ended: {last}")
        answer = json.loads(line)
        if "error" in answer:
            raise WorkError(f"a benchmark process failed at {method}: {answer['error']}")
        return answer["answer"]

    def __enter__(self) -> "RemoteWorker":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.communicate()
        self._said.close()
