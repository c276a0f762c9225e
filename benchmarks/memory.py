"""The peak memory of a piece of work in this process, above what the process used before."""

import gc
from collections.abc import Callable

import torch

from lightning_gpt.hardware import can_restart_peak, resident_bytes, restart_peak
from lightning_gpt.models.graph import held_by_graphs


def missing(device: str) -> str | None:
    """Why peaks cannot be measured on this machine; None if they can."""
    if device == "cuda" or can_restart_peak():
        return None
    return "peak memory on a CPU is read from Linux's /proc, which this system does not have"


def peak_bytes(work: Callable[[], object], device: str, *more: Callable[[], object]) -> int:
    """The most memory that ``work``, and then each of ``more``, used at once, in bytes.

    On CUDA this is the memory that torch allocated, plus what graphs already held when that piece of work began. On a
    CPU it is the resident set, which is exact only in a fresh process: memory that was freed earlier can be reused
    without being counted.
    """
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()  # pools of graphs that are gone
        device_here, peaks = torch.device("cuda", torch.cuda.current_device()), []
        before = torch.cuda.memory_allocated() + held_by_graphs(device_here)
        for piece in (work, *more):
            held = held_by_graphs(device_here)
            torch.cuda.reset_peak_memory_stats()
            piece()
            torch.cuda.synchronize()
            peaks.append(torch.cuda.max_memory_allocated() + held)
        return max(peaks) - before
    at_start = resident_bytes()
    restart_peak()
    for piece in (work, *more):
        piece()
    peak = resident_bytes(peak=True)
    assert at_start is not None
    assert peak is not None, "missing() says why"
    return peak - at_start
