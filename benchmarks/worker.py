"""A process of its own for a subject: one JSON request a line on standard input, one answer a line on standard output.

It needs nothing but torch and the project that it is asked for, so that it also runs in another environment's Python.
"""

import json
import sys
from collections.abc import Callable, Mapping
from typing import Any

import torch

from benchmarks import peers
from benchmarks.attention import attention_work
from benchmarks.memory import peak_bytes
from benchmarks.subject import Subject
from benchmarks.workload import Spec

_STEPS = 3


class Worker:
    """What can be asked of the process: one method a request."""

    def __init__(self) -> None:
        self._subject: Subject | None = None

    def missing(self, project: str, peer_dir: str | None) -> str | None:
        """Why this environment cannot build ``project``."""
        return peers.missing(project, peer_dir)

    def threads(self, number: int) -> None:
        """Compute with as many threads as the asking process does."""
        torch.set_num_threads(number)

    def build(self, spec: dict[str, Any]) -> None:
        """Hold this subject in place of the one before."""
        self._subject = None
        self._subject = peers.build(Spec.from_values(spec))

    def step(self) -> float:
        """Seconds of a training step."""
        assert self._subject is not None
        return self._subject.timed_step()

    def step_memory(self, spec: dict[str, Any]) -> int:
        """Bytes at the peak of a model's making and first steps, over the process before."""
        asked = Spec.from_values(spec)
        torch.ones(64, 64, device=asked.device) @ torch.ones(64, 64, device=asked.device)  # the libraries' own memory
        small = Spec.from_values({**spec, "n_layer": 1, "workload": {**spec["workload"], "vocab_size": 64, "time": 8}})
        peers.build(small).step()  # what is imported and set up once is no step's

        def work() -> None:
            subject = peers.build(asked)
            for _ in range(_STEPS):
                subject.step()

        return peak_bytes(work, asked.device)

    def attention_memory(self, spec: dict[str, Any]) -> int:
        """Bytes at the peak of one attention layer's forward and backward pass."""
        asked = Spec.from_values(spec)
        attention_work(asked, 16)()  # what is set up once
        return peak_bytes(attention_work(asked, asked.workload.attention_time), asked.device)


def main() -> None:
    """Answer requests until standard input ends: ``{"ask": method, ...}`` gets ``{"answer": value}`` or an error."""
    answers = sys.stdout
    sys.stdout = sys.stderr  # what projects print is no answer
    worker = Worker()
    for line in sys.stdin:
        request = json.loads(line)
        answers.write(json.dumps(_answer(getattr(worker, request.pop("ask")), request)) + "\n")
        answers.flush()


def _answer(method: Callable[..., Any], arguments: Mapping[str, Any]) -> dict[str, Any]:
    try:
        return {"answer": method(**arguments)}
    except Exception as error:  # the asking process says it in its own words
        return {"error": f"{type(error).__name__}: {' '.join(str(error).split())}"}


if __name__ == "__main__":
    main()
