"""Client of a worker process."""

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Any

from lightning_gpt.errors import CallError, WorkError

_ROOT = str(Path(__file__).parents[1])
# appended, so that another environment's Python prefers its own versions of all other packages
_PROGRAM = f"import sys; sys.path.append({_ROOT!r}); from benchmarks.worker import main; main()"


class RemoteWorker:
    """A new process that answers requests for the methods of :class:`~benchmarks.worker.Worker`.

    Args:
        python: Interpreter to run; that of this process if None.
        threads: Number of threads for torch.
    """

    def __init__(self, python: str | None, threads: int) -> None:
        self._stderr = tempfile.TemporaryFile("w+")  # noqa: SIM115 - an unread pipe would fill up and block the process
        try:
            self._process = subprocess.Popen(
                [python or sys.executable, "-c", _PROGRAM],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._stderr,
                text=True,
            )
        except OSError as error:
            raise CallError(f"litgpt_python is {python!r}, which cannot be run: {error.strerror}") from None
        self.ask("threads", number=threads)

    def ask(self, method: str, **arguments: Any) -> Any:
        """The worker's answer.

        Raises:
            WorkError: If the worker failed or exited.
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
            self._stderr.seek(0)
            last = (self._stderr.read().strip().splitlines() or ["no error output"])[-1]
            raise WorkError(f"a benchmark process exited: {last}")
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
        self._stderr.close()
