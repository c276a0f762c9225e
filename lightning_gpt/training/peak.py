"""A device's peak rate of floating-point operations in matrix products, the denominator of MFU."""

import time
from functools import cache

import torch

from lightning_gpt.planning.devices import matching
from lightning_gpt.training.device_clock import synchronize

_SIZE, _ROUNDS = 1024, 5
_SLOW = 0.02
"""Seconds of a product of a quarter of the size from which on a whole one, 64 times as long, is not waited for."""


def precision_dtype(precision: str) -> torch.dtype:
    """The dtype of matrix products under a Trainer's ``precision``, such as ``bf16-mixed`` or ``32-true``."""
    kinds = {"bf16": torch.bfloat16, "16": torch.float16, "64": torch.float64}
    return kinds.get(precision.split("-")[0], torch.float32)


def peak_flops(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of the fastest products of ``dtype`` on ``device``.

    For half precision on a known GPU this is the published dense peak, which no product quite reaches. For anything
    else it is measured once per process, in a fraction of a second, as the best rate of a product of two square
    matrices.
    """
    if device.type == "cuda" and dtype in (torch.bfloat16, torch.float16):
        published = published_peak(torch.cuda.get_device_name(device))
        if published is not None:
            return published
    return _measured(device, dtype)


@cache
def _measured(device: torch.device, dtype: torch.dtype) -> float:
    size = _SIZE if device.type == "cpu" else 8 * _SIZE
    seconds = product_seconds(device, dtype, size // 4, 2)
    # a dtype without fast products, such as fp16 on most CPUs; its rate does not grow with the size
    if seconds > _SLOW:
        return 2 * (size // 4) ** 3 / seconds
    return 2 * size**3 / product_seconds(device, dtype, size, _ROUNDS)


def published_peak(name: str) -> float | None:
    """The published dense half-precision FLOP/s of the GPU called ``name``; None if it is not in the table."""
    kind = matching(name)
    return None if kind is None else kind.rates.get("bf16", kind.rates.get("fp16"))


def product_seconds(device: torch.device, dtype: torch.dtype, size: int, rounds: int) -> float:
    """Seconds of the fastest of ``rounds`` ``size × size`` products, after an untimed one to set the library up."""
    left = right = torch.ones(size, size, device=device, dtype=dtype)  # ones, so as to draw no random numbers
    out = torch.empty_like(left)
    times = []
    for _ in range(1 + rounds):
        synchronize(device)
        start = time.perf_counter()
        torch.mm(left, right, out=out)
        synchronize(device)
        times.append(time.perf_counter() - start)
    return min(times[1:])
