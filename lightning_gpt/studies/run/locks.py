"""Locks that the operating system gives up when their holders end, however they end."""

import fcntl
import os
from pathlib import Path


def try_lock(path: Path, *, shared: bool = False) -> int | None:
    """Lock a file, which is made where there is none; returns its descriptor, or None where another holds it.

    The lock lasts until every process that has the descriptor, inherited ones too, has closed it or ended.

    Args:
        path: The file.
        shared: Whether others may share the lock; one that is not shared is for one holder alone.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor
