"""The limits that a container or a batch system sets through Linux control groups, version 1 and version 2."""

from collections.abc import Iterator
from pathlib import Path

_OWN, _ROOT = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")


def core_quota() -> float | None:
    """How many cores' worth of time this process may use; None if there is no limit."""
    quotas = []
    for folder in _folders("cpu"):
        together = _read(folder / "cpu.max").split()  # version 2
        quota, period = together or (_read(folder / "cpu.cfs_quota_us"), _read(folder / "cpu.cfs_period_us"))
        if quota not in ("", "max", "-1"):
            quotas.append(int(quota) / int(period))
    return min(quotas, default=None)


def memory_left() -> int | None:
    """How many bytes of memory this process may still use, before the system's own limit; None if there is no limit.

    The cache of files that were read once counts as free, because the system gives it up first.
    """
    left = []
    for folder in _folders("memory"):
        limit = _read(folder / "memory.max") or _read(folder / "memory.limit_in_bytes")
        used = _read(folder / "memory.current") or _read(folder / "memory.usage_in_bytes")
        if limit in ("", "max") or not used:
            continue
        statistics = dict(line.split()[:2] for line in _read(folder / "memory.stat").splitlines())
        cache = int(statistics.get("total_inactive_file", statistics.get("inactive_file", "0")))
        left.append(int(limit) - int(used) + cache)
    return min(left, default=None)


def processes_left() -> int | None:
    """How many processes and threads may still be started; None if there is no limit."""
    left = []
    for folder in _folders("pids"):
        limit, used = _read(folder / "pids.max"), _read(folder / "pids.current")
        if limit not in ("", "max") and used:
            left.append(int(limit) - int(used))
    return min(left, default=None)


def _folders(controller: str) -> Iterator[Path]:
    """The folders that hold the limits of a controller: of this process's group, and of each group around it."""
    for line in _read(_OWN).splitlines():
        number, controllers, path = line.split(":", 2)
        if number == "0":
            root = _ROOT
        elif controller in controllers.split(","):
            root = _ROOT / controllers
        else:
            continue
        group = Path(path.lstrip("/"))  # inside a container it may not exist; its parents do
        yield from (root / each for each in (group, *group.parents))


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="ascii").strip()
    except OSError:
        return ""
