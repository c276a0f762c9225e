"""Devices, threads, precision and memory."""

import os
from collections.abc import Iterator
from pathlib import Path

from lightning_gpt.doctor.cgroup import core_quota, memory_left
from lightning_gpt.doctor.finding import CheckResult, ok, problem, warning
from lightning_gpt.hardware import cores, incomplete_teams, processor

GIB = 2**30
_SMALL_MEMORY = 2 * GIB
"""Bytes. ``fit`` takes about 1 GiB before it has a model."""


def devices() -> Iterator[CheckResult]:
    """What models can run on, with its memory and whether it computes in bf16."""
    import torch

    for number in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(number)
        bf16 = "bf16" if torch.cuda.get_device_capability(number) >= (8, 0) else "no bf16"
        space = f"{free / GIB:.1f} of {total / GIB:.1f} GiB free"
        text = f"GPU {number}: {torch.cuda.get_device_name(number)}, {space}, {bf16}"
        if free < total / 2:
            yield warning(f"{text}: another process uses it", "nvidia-smi shows which; or set CUDA_VISIBLE_DEVICES")
        else:
            yield ok(text)
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
    if torch.cuda.is_available():
        return
    if torch.backends.mps.is_available():
        yield ok(f"MPS (Apple GPU), {torch.mps.recommended_max_memory() / GIB:.1f} GiB usable")
    because = f" (CUDA_VISIBLE_DEVICES is {hidden!r})" if hidden is not None else ""
    yield ok(f"CPU: {processor()}; no CUDA device{because}")


def threads() -> Iterator[CheckResult]:
    """The threads that torch computes with, against the cores that this process may use."""
    import torch

    usable, quota, used = cores(), core_quota(), torch.get_num_threads()
    asked = os.environ.get("OMP_NUM_THREADS")
    allowed = usable if quota is None else max(1, min(usable, round(quota)))
    limit = "" if quota is None else f", limited to the time of {quota:.3g} cores"
    set_to = "" if asked is None else f" (OMP_NUM_THREADS is {asked!r})"
    text = f"torch uses {used}; {usable} of {os.cpu_count()} cores are usable{limit}{set_to}"
    remedy = f"export OMP_NUM_THREADS={allowed}"
    incomplete = incomplete_teams()
    if incomplete is not None:
        found, _, remedy = incomplete.partition("; ")
        yield problem(found, remedy)
    elif asked is not None and not all(part.strip().isdecimal() and int(part) for part in asked.split(",")):
        yield warning(f"{text}: it is not a number of at least 1 and is ignored", remedy)
    elif used > allowed:
        yield warning(f"{text}: threads wait for each other, which slows training down", remedy)
    else:
        yield ok(text)


def load() -> Iterator[CheckResult]:
    """How busy the machine is."""
    busy, total = os.getloadavg()[0], os.cpu_count() or 1
    text = f"{busy:.1f} processes on {total} cores in the last minute"
    if busy > total:
        yield warning(f"{text}: training is slow and timings are noisy", "end other programs; top lists them")
    else:
        yield ok(text)


def precision() -> Iterator[CheckResult]:
    """What ``fit`` selects when no precision is given."""
    from lightning_gpt.training.precision import fastest_precision

    name, reason = fastest_precision()
    yield ok(f"{name} is selected: {reason}")


def memory() -> Iterator[CheckResult]:
    """How much memory is available."""
    available, is_limited = _available_memory()
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    text = f"{available / GIB:.1f} GiB available of {total / GIB:.1f} GiB"
    if is_limited:
        text += ", as limited by the container or batch job"
    if available < _SMALL_MEMORY:
        yield warning(text, "fit takes about 1 GiB before it has a model: end other programs, or raise the limit")
    else:
        yield ok(text)


def available_memory() -> int:
    """The bytes of memory that this process can still use: what is free, or left of its control group's limit."""
    return _available_memory()[0]


def _available_memory() -> tuple[int, bool]:
    """The same, and whether the limit makes it so; both are read once, because other programs change them."""
    limit, free = memory_left(), _free_memory()
    return (free, False) if limit is None or free < limit else (limit, True)


def _free_memory() -> int:
    information = Path("/proc/meminfo")
    if information.exists():
        for line in information.read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
