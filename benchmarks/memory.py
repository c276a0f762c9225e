"""The peak memory of a piece of work in this process, above what the process used before."""

import gc
from collections.abc import Callable

import torch

from lightning_gpt.hardware import can_restart_peak, resident_bytes, restart_peak


def missing(device: str) -> str | None:
    """Why peaks cannot be measured on this machine; None if they can."""
    if device == "cuda" or can_restart_peak():
        return None
    return "peak memory on a CPU is read from Linux's /proc, which this system does not have"


def peak_bytes(work: Callable[[], object], device: str) -> int:
    """The most memory that ``work`` used at once, in bytes.

    On CUDA this is the memory allocated by torch, on a CPU the resident set. The latter is exact only in a fresh
    process: memory that was freed earlier can be reused without being counted.
    """
    gc.collect()
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    at_start = resident_bytes()
    restart_peak()
    work()
    peak = resident_bytes(peak=True)
    assert at_start is not None
    assert peak is not None, "missing() says why"
    return peak - at_start
