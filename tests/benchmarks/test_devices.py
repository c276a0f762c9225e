"""What a CUDA device changes, as far as it shows on a CPU: where tokens are drawn and what clocks wait for."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode

from benchmarks import peers
from benchmarks.attention import attention_seconds
from benchmarks.bench import OURS, Bench
from benchmarks.rows.fit import BareSteps
from benchmarks.subject import Subject


class GeneratorsOfTheirDevice(TorchFunctionMode):
    """Refuses a generator of another device than the tensor's, as torch does on CUDA and the meta device does not."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        generator, device = kwargs.get("generator"), torch.device(kwargs.get("device") or "cpu")
        if generator is not None and generator.device.type != device.type:
            raise RuntimeError(f"Expected a '{device.type}' device type for generator but found '{generator.device}'")
        return func(*args, **kwargs)


@pytest.mark.parametrize("project", ["ours", "nanoGPT", "Hugging Face"])
def test_a_subject_is_built_whole_on_a_device_that_is_not_the_cpu(project: str, bench: Bench) -> None:
    spec = replace(bench.spec(project, 2), device="meta")
    with GeneratorsOfTheirDevice():
        subject = peers.build(spec)
    tensors = [subject.ids, subject.targets, subject.prompts, *subject.model.parameters()]
    assert {tensor.device.type for tensor in tensors} == {"meta"}


@dataclass
class Queue:
    """A device that works behind the Python code, and the clock on the wall, in seconds."""

    now: float = 0.0
    queued: float = 0.0

    def add(self, seconds: float) -> None:
        self.queued += seconds

    def synchronize(self, *_: Any) -> None:
        self.now, self.queued = self.now + self.queued, 0.0


@pytest.fixture
def queue(monkeypatch: pytest.MonkeyPatch) -> Queue:
    device = Queue()
    monkeypatch.setattr("torch.cuda.synchronize", device.synchronize)
    monkeypatch.setattr("time.perf_counter", lambda: device.now)
    return device


@pytest.fixture
def subject(bench: Bench, queue: Queue, monkeypatch: pytest.MonkeyPatch) -> Subject:
    """One whose step queues 2 seconds of work and returns at once."""
    built = peers.build(bench.spec(OURS, 1))
    built.spec = replace(built.spec, device="cuda")
    monkeypatch.setattr(built, "step", lambda: queue.add(2))
    return built


def test_a_step_is_timed_without_what_was_queued_before(subject: Subject, queue: Queue) -> None:
    queue.add(100)
    assert subject.timed_step() == 2


def test_attention_is_timed_without_what_was_queued_before(
    bench: Bench, queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("benchmarks.attention.attention_work", lambda spec, length: lambda: queue.add(length))
    timed = attention_seconds(replace(bench.spec(OURS, 1), device="cuda"), 8)
    queue.add(100)
    assert timed() == 8


def test_steps_of_fit_and_of_the_bare_loop_are_timed_apart(subject: Subject, queue: Queue) -> None:
    callback: Any = BareSteps(subject, rounds=2)
    batch = {"ids": subject.ids, "targets": subject.targets}
    queue.add(100)  # what the Trainer did before training
    callback.on_train_start(SimpleNamespace(), SimpleNamespace())
    for number in range(6):
        queue.add(5)
        callback.on_train_batch_end(SimpleNamespace(), SimpleNamespace(), None, batch, number)
    assert callback.fit_seconds == [5, 5]
    assert callback.bare_seconds == [2, 2]
