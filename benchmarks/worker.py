"""A separate process for a subject: one JSON request per line of standard input, one answer per line of output.

It needs only torch and the requested project, so that it also runs in another environment's Python.
"""

import json
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch

from benchmarks import peers
from benchmarks.attention import attention_work
from benchmarks.memory import peak_bytes
from benchmarks.subject import Subject
from benchmarks.workload import Spec

_STEPS = 3


class Worker:
    """The requests that the process answers, one method each."""

    def __init__(self) -> None:
        self._subject: Subject | None = None

    def missing(self, project: str, peer_dir: str | None) -> str | None:
        """Why this environment cannot build ``project``."""
        return peers.missing(project, peer_dir)

    def threads(self, number: int) -> None:
        """Use as many threads as the requesting process."""
        torch.set_num_threads(number)

    def build(self, spec: dict[str, Any]) -> None:
        """Build this subject; it replaces the previous one."""
        self._subject = None
        self._subject = peers.build(Spec.from_values(spec))

    def step(self) -> float:
        """Seconds of a training step."""
        assert self._subject is not None
        return self._subject.timed_step()

    def step_memory(self, spec: dict[str, Any]) -> int:
        """Peak memory in bytes of building a model and taking its first steps, above what the process used before."""
        asked = Spec.from_values(spec)
        torch.ones(64, 64, device=asked.device) @ torch.ones(
            64, 64, device=asked.device
        )  # allocates the libraries' own memory
        small = Spec.from_values({**spec, "n_layer": 1, "workload": {**spec["workload"], "vocab_size": 64, "time": 8}})
        peers.build(small).step()  # imports and initialisation do not belong to a step

        def steps() -> Iterator[None]:
            subject = peers.build(asked)
            with subject.around():
                subject.step()
                yield  # a graph exists from here on
                for _ in range(_STEPS - 1):
                    subject.step()

        taken = steps()
        return peak_bytes(lambda: next(taken), asked.device, lambda: next(taken, None))

    def attention_memory(self, spec: dict[str, Any]) -> int:
        """Peak memory in bytes of one attention layer's forward and backward pass."""
        asked = Spec.from_values(spec)
        attention_work(asked, 16)()  # initialisation
        return peak_bytes(attention_work(asked, asked.workload.attention_time), asked.device)


def main() -> None:
    """Answer requests until standard input ends: ``{"ask": method, ...}`` returns ``{"answer": value}`` or an error."""
    answers = sys.stdout
    sys.stdout = sys.stderr  # what projects print must not mix with the answers
    worker = Worker()
    for line in sys.stdin:
        request = json.loads(line)
        answers.write(json.dumps(_answer(getattr(worker, request.pop("ask")), request)) + "\n")
        answers.flush()


def _answer(method: Callable[..., Any], arguments: Mapping[str, Any]) -> dict[str, Any]:
    try:
        return {"answer": method(**arguments)}
    except Exception as error:  # the requesting process reports it
        return {"error": f"{type(error).__name__}: {' '.join(str(error).split())}"}


if __name__ == "__main__":
    main()
