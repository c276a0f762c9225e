"""Time on a device that runs its work after the call that queued it."""

import time

import torch


def synchronize(device: torch.device) -> None:
    """Wait until ``device`` has finished all work queued so far."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def clock(device: torch.device) -> float:
    """``time.perf_counter()`` once ``device`` has finished its queued work, since CUDA calls return early."""
    synchronize(device)
    return time.perf_counter()
