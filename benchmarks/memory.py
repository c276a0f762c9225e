"""How much memory a piece of work takes at its peak, in this process, over what the process held before."""

import gc
from collections.abc import Callable

import torch

from lightning_gpt.hardware import can_restart_peak, resident_bytes, restart_peak


def missing(device: str) -> str | None:
    """Why peaks cannot be measured here; None where they can."""
    if device == "cuda" or can_restart_peak():
        return None
    return "the peak of a process's memory is read from Linux's /proc, which is not here"


def peak_bytes(work: Callable[[], object], device: str) -> int:
    """The most that ``work`` held at once, in bytes.

    On CUDA what torch allocated; on a CPU the resident set. Only in a process that has done nothing else is the latter
    exact: memory that was freed before may be used again, and is then not seen.
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
