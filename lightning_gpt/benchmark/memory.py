"""How much memory a piece of work takes at its peak, in this process, over what the process held before."""

import gc
from collections.abc import Callable
from pathlib import Path

import torch

_STATUS, _CLEAR_REFS = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def missing(device: str) -> str | None:
    """Why peaks cannot be measured here; None where they can."""
    if device == "cuda" or _CLEAR_REFS.exists():
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
    before = _resident("VmRSS")
    _CLEAR_REFS.write_text("5")  # proc(5): the peak starts again from now
    work()
    return _resident("VmHWM") - before


def _resident(field: str) -> int:
    for line in _STATUS.read_text(encoding="ascii", errors="replace").splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    raise AssertionError(f"{_STATUS} has no {field}")
