"""Properties of the machine reported by the operating system, without heavy imports."""

import os
import platform
import shutil
import sys
from pathlib import Path

_SHARED = Path("/dev/shm")  # nosec B108 - its free space is read, nothing is written
_GPUS = Path("/proc/driver/nvidia/gpus")
_STATUS, _CLEAR_REFS = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def processor() -> str:
    """The processor's name."""
    information = Path("/proc/cpuinfo")
    if information.exists():
        for entry in information.read_text(encoding="utf-8", errors="replace").splitlines():
            if entry.startswith("model name"):
                return entry.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def cores() -> int:
    """The number of processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def incomplete_teams() -> str | None:
    """What in the environment makes OpenMP start fewer threads than are asked for, and the remedy; None if nothing.

    oneDNN, with which torch multiplies in bf16 on a CPU, does not notice: it leaves out the work of those threads.
    """
    wrong = "with fewer threads than it asked for, torch's bf16 products are wrong"
    dynamic = os.environ.get("OMP_DYNAMIC", "")
    if dynamic.strip().lower() == "true":
        return f"OMP_DYNAMIC is {dynamic!r}: {wrong}; unset OMP_DYNAMIC"
    limit, asked = os.environ.get("OMP_THREAD_LIMIT", ""), os.environ.get("OMP_NUM_THREADS", "").partition(",")[0]
    if not limit.isdecimal() or int(limit) == 0:
        return None
    threads = int(asked) if asked.isdecimal() and int(asked) else cores()
    if int(limit) >= threads:
        return None
    return f"OMP_THREAD_LIMIT is {limit} of {threads} threads: {wrong}; export OMP_NUM_THREADS={limit}"


def nvidia_gpus() -> int:
    """The number of GPUs that the NVIDIA driver lists (Linux only); CUDA_VISIBLE_DEVICES does not change it."""
    return len(list(_GPUS.iterdir())) if _GPUS.is_dir() else 0


def shared_memory_left() -> int | None:
    """The bytes of shared memory that processes can still pass to each other; None where the system has no limit."""
    if not _SHARED.is_dir():
        return None
    return shutil.disk_usage(_SHARED).free if os.access(_SHARED, os.W_OK) else 0


def resident_bytes(*, peak: bool = False) -> int | None:
    """This process's resident memory in bytes, or its peak since :func:`restart_peak`; None outside Linux."""
    if sys.platform != "linux":
        return None
    field = "VmHWM:" if peak else "VmRSS:"
    for line in _STATUS.read_text(encoding="ascii", errors="replace").splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    return None


def can_restart_peak() -> bool:
    """Whether the peak can be reset."""
    return _CLEAR_REFS.exists()


def restart_peak() -> None:
    """Reset the peak of the resident set to its current size.

    Raises:
        OSError: If the system does not allow it.
    """
    _CLEAR_REFS.write_text("5")  # proc(5)
