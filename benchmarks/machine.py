"""What the machine is, and the limits that training steps are compared with."""

import os
from typing import Any

import torch

from benchmarks.rounds import seconds
from lightning_gpt.hardware import processor
from lightning_gpt.training.peak import product_seconds

PRODUCT_SIZE = 2048
_COPY_BYTES = 2**28


def product_flops(device: torch.device, dtype: torch.dtype, rounds: int) -> float:
    """The highest rate of a square matrix product over ``rounds``, in FLOP/s."""
    size = PRODUCT_SIZE if device.type == "cpu" else 4 * PRODUCT_SIZE
    return 2 * size**3 / product_seconds(device, dtype, size, rounds)


def bandwidth(device: torch.device, rounds: int) -> float:
    """The highest rate of copying an array much larger than any cache: bytes read and written per second."""
    source = torch.ones(_COPY_BYTES // 4, device=device)
    target = torch.empty_like(source)

    times = [seconds(lambda: target.copy_(source), device) for _ in range(1 + rounds)]
    return 2 * _COPY_BYTES / min(times[1:])  # the first copy also allocates the target's pages


def describe(device: torch.device, rounds: int) -> dict[str, Any]:
    """Name, threads, versions and measured limits, formatted for reading."""
    flops = {name: product_flops(device, dtype, rounds) for name, dtype in _DTYPES.items()}
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else processor(),
        "threads": torch.get_num_threads(),
        "processors": os.cpu_count(),
        "torch": torch.__version__,
        "product peak": ", ".join(f"{name} {rate / 1e9:,.0f} GFLOP/s" for name, rate in flops.items()),
        "memory bandwidth": f"{bandwidth(device, rounds) / 1e9:.0f} GB/s",
    }


_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
