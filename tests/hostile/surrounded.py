"""``lightning-gpt`` in other surroundings: ``python -m tests.hostile.surrounded CHANGE=VALUE... -- ARGUMENTS``.

The changes are made in the process that then becomes the command, so a fork of the fork server can be given them. They
are made in the order in which they are named.
"""

import ctypes
import os
import runpy
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable

import torch

_CLONE_NEWNS = 0x20000  # sched.h
_CAPABILITY_VERSION_3 = 0x20080522  # linux/capability.h
_DAY = 86_400.0


def _user(number: str) -> None:
    """Another user, who is not in the system's list of users."""
    os.setgroups([])
    os.setgid(int(number))
    os.setuid(int(number))


def _mount(options_and_folder: str) -> None:
    """A tmpfs that only this process sees."""
    options, folder = options_and_folder.split(":", 1)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_CLONE_NEWNS) != 0:
        raise OSError(ctypes.get_errno(), "unshare")
    subprocess.run(["mount", "--make-rprivate", "/"], check=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", folder], check=True)


def _no_privileges(_: str) -> None:
    """Root may then do no more to files than their owner, as an ordinary user."""
    header, data = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0), (ctypes.c_uint32 * 6)()
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.capset(header, data) != 0:
        raise OSError(ctypes.get_errno(), "capset")


def _close(number: str) -> None:
    """A standard stream that is closed at the start."""
    os.close(int(number))
    setattr(sys, ("stdin", "stdout", "stderr")[int(number)], None)


def _delete_working_folder(_: str) -> None:
    folder = tempfile.mkdtemp()
    os.chdir(folder)
    os.rmdir(folder)


def _clock(how: str) -> None:
    """A system clock that is set while the command runs: it is off by what ``how`` says after half a second."""
    seconds, nanoseconds, start = time.time, time.time_ns, time.time()
    offsets: dict[str, Callable[[float], float]] = {
        "back": lambda since: -400 * _DAY if since > 0.5 else 0.0,
        "forward": lambda since: 400 * _DAY if since > 0.5 else 0.0,
        "unsteady": lambda since: 3600.0 * (int(since * 20) % 3 - 1),
        "stopped": lambda since: -since,
        "unset": lambda since: -start,
    }
    offset = offsets[how]
    time.time = lambda: seconds() + offset(seconds() - start)
    time.time_ns = lambda: nanoseconds() + int(1e9 * offset(seconds() - start))


_CHANGES: dict[str, Callable[[str], object]] = {
    "clock": _clock,
    "close": _close,
    "cores": lambda number: os.sched_setaffinity(0, set(list(os.sched_getaffinity(0))[: int(number)])),
    "deleted": _delete_working_folder,
    "mount": _mount,
    "privileges": _no_privileges,
    "threads": lambda number: torch.set_num_threads(int(number)),
    "umask": lambda mode: os.umask(int(mode, 8)),
    "user": _user,
}

if __name__ == "__main__":
    end = sys.argv.index("--")
    for change in sys.argv[1:end]:
        name, _, value = change.partition("=")
        _CHANGES[name](value)
    sys.argv[1:] = sys.argv[end + 1 :]
    runpy.run_module("lightning_gpt", run_name="__main__", alter_sys=True)
