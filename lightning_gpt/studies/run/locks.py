"""Locks that the operating system releases when their holders end, however they end."""

import fcntl
import os
from pathlib import Path


def try_lock(path: Path, *, shared: bool = False) -> int | None:
    """Lock a file, created where missing; returns its descriptor, or None where another process holds the lock.

    The lock lasts until every process that has the descriptor, including those that inherited it, has closed it or
    ended.

    Args:
        path: The file.
        shared: Whether other shared locks may be held at the same time; otherwise the lock is exclusive.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor
