"""Which precision this machine is fast in."""

import time

import torch


def fastest_precision(accelerator: str = "auto") -> tuple[str, str]:
    """A Trainer precision that trains well and fast here, and why it was chosen.

    On a GPU, by what it supports. On a CPU by a short measurement: bf16 products are several times faster
    than fp32 where the processor has AVX512-BF16 or AMX, and slower where it has not; no version number tells.

    Args:
        accelerator: The Trainer's flag: ``auto``, ``cpu``, ``gpu``, ``cuda`` or ``mps``.
    """
    if accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available():
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return "bf16-mixed", "this GPU has bf16 units"
        return "16-mixed", "this GPU has fp16 and no bf16 units"
    if accelerator in ("auto", "gpu", "mps") and torch.backends.mps.is_available():
        return "32-true", "no mixed precision is proved on this accelerator"
    gain = _product_time(torch.float32) / _product_time(torch.bfloat16)
    if gain > 1.5:
        return "bf16-mixed", f"bf16 products measured {gain:.1f} x as fast as fp32 on this CPU"
    return "32-true", f"bf16 products measured only {gain:.1f} x as fast as fp32 on this CPU"


def _product_time(dtype: torch.dtype, size: int = 512, rounds: int = 5) -> float:
    """Least seconds of one ``size × size`` product in ``dtype``; the first, which sets the library up, left out."""
    matrix = torch.randn(size, size).to(dtype)
    matrix @ matrix
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        matrix @ matrix
        times.append(time.perf_counter() - start)
    return min(times)
