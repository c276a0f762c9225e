"""What a run says that it cost."""

import sys
import time
from pathlib import Path

import pytest
import torch

from lightning_gpt.training.callbacks.cost import STEPS_KEPT, PeakMemory, StepClock
from lightning_gpt.training.device_clock import clock

CPU = torch.device("cpu")


def test_clock_counts_from_mark_to_mark_and_leaves_out_what_it_is_told_to(monkeypatch: pytest.MonkeyPatch) -> None:
    moments = iter([1.0, 3.0, 7.0, 200.0, 203.0])
    monkeypatch.setattr(time, "perf_counter", lambda: next(moments))
    steps = StepClock(CPU)
    assert steps.median() is None
    for _ in range(3):
        steps.mark()
    assert list(steps.seconds) == [2.0, 4.0]
    steps.restart()  # a validation
    for _ in range(2):
        steps.mark()
    assert list(steps.seconds) == [2.0, 4.0, 3.0]
    assert steps.median() == 3.0


def test_a_long_run_keeps_its_last_steps_only(monkeypatch: pytest.MonkeyPatch) -> None:
    moments = iter(range(10_000))
    monkeypatch.setattr(time, "perf_counter", lambda: next(moments) ** 2)
    steps, memory = StepClock(CPU), PeakMemory(CPU)
    for _ in range(3 * STEPS_KEPT):
        steps.mark()
        memory.end()
    assert (len(steps.seconds), len(memory.bytes)) == (STEPS_KEPT, STEPS_KEPT)
    assert steps.median() == 2 * (3 * STEPS_KEPT - 1) - STEPS_KEPT  # of x² − (x − 1)² = 2x − 1


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the resident set is read from Linux's /proc")
def test_peak_is_of_the_step_alone_and_counts_what_was_freed_in_it() -> None:
    memory = PeakMemory(CPU)
    for megabytes in (200, 20):
        memory.begin()
        torch.ones(megabytes * 1_000_000 // 4)
        memory.end()
    large, small = (size / 1e6 for size in memory.bytes)
    assert 195 < large < 260
    assert 15 < small < 80


@pytest.mark.parametrize("kind", ["cuda", "mps"])
def test_a_time_waits_for_the_work_of_its_device(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[str] = []
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: waited.append(device.type))
    monkeypatch.setattr(torch.mps, "synchronize", lambda: waited.append("mps"))
    clock(torch.device(kind))
    assert waited == [kind]


def test_no_peak_is_told_where_the_system_does_not_tell_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    memory = PeakMemory(torch.device("mps"))
    memory.begin()
    memory.end()
    assert not memory.bytes


def test_the_peak_of_replayed_steps_counts_the_memory_of_their_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    def segment(pool: tuple[int, int], total: int, allocated: int, device: int = 0) -> dict[str, object]:
        return {"segment_pool_id": pool, "total_size": total, "allocated_size": allocated, "device": device}

    segments = [segment((0, 0), 900, 700), segment((0, 1), 400, 100), segment((0, 1), 50, 0), segment((0, 2), 8, 0, 1)]
    peaks = iter([10_000, 720, 730])  # the first step captures the graph
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: None)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: next(peaks))
    monkeypatch.setattr(torch.cuda, "memory_snapshot", lambda: segments)
    memory = PeakMemory(torch.device("cuda:0"))
    assert memory.median() is None
    for _ in range(3):
        memory.begin()
        memory.end()
    assert memory.median() == 730 + (400 - 100) + 50
