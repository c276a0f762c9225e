"""Selecting the fastest Trainer precision for this machine."""

import time

import torch

_SPELLINGS = {"64": "64-true", "32": "32-true", "16": "16-mixed", "bf16": "bf16-mixed"}


def full_name(precision: object) -> str:
    """The name of a Trainer precision that Lightning also takes in short, such as ``16-mixed`` for 16."""
    return _SPELLINGS.get(str(precision), str(precision))


def fastest_precision(accelerator: str = "auto") -> tuple[str, str]:
    """A Trainer precision that is safe and fast on this machine, and the reason for selecting it.

    On a GPU it depends on what the GPU supports. On a CPU it depends on a short measurement: bf16 products are several
    times faster than fp32 with AVX512-BF16 or AMX and slower without, and no version number tells which.

    Args:
        accelerator: The Trainer's flag: ``auto``, ``cpu``, ``gpu``, ``cuda`` or ``mps``.
    """
    if accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available():
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return "bf16-mixed", "this GPU has bf16 units"
        return "16-mixed", "this GPU has fp16 units but no bf16 units"
    if accelerator in ("auto", "gpu", "mps") and torch.backends.mps.is_available():
        return "32-true", "mixed precision has not been tested on this accelerator"
    gain = _product_time(torch.float32) / _product_time(torch.bfloat16)
    if gain > 1.5:
        return "bf16-mixed", f"bf16 matrix products are {gain:.1f}x as fast as fp32 on this CPU"
    return "32-true", f"bf16 matrix products are only {gain:.1f}x as fast as fp32 on this CPU"


def _product_time(dtype: torch.dtype, size: int = 512, rounds: int = 5) -> float:
    """Seconds of a core for a ``size × size`` product in ``dtype``: the best of ``rounds``, after one untimed product.

    One thread computes it, and its time without a core does not count. So other programs change neither the choice nor
    the figure that is printed.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        matrix = torch.randn(size, size).to(dtype)
        matrix @ matrix
        times = []
        for _ in range(rounds):
            start = time.thread_time()
            matrix @ matrix
            times.append(time.thread_time() - start)
        return min(times)
    finally:
        torch.set_num_threads(threads)
