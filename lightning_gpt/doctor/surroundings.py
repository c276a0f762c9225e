"""What a process is given by its user and its system: limits, encodings, a home folder, a network."""

import locale
import os
import resource
import socket
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import getproxies

from lightning_gpt.doctor.cgroup import processes_left
from lightning_gpt.doctor.finding import CheckResult, ok, warning
from lightning_gpt.hardware import shared_memory_left

_MIB = 2**20
_FEW_FILES, _FEW_PROCESSES, _SMALL_SHARED = 1024, 256, 256 * _MIB
_SECONDS = 3.0
"""How long the Hub may take to answer."""


def limits() -> Iterator[CheckResult]:
    """Limits of the process (``ulimit``)."""
    files, processes = resource.getrlimit(resource.RLIMIT_NOFILE)[0], _most_processes()
    low = [
        (0 <= files < _FEW_FILES, f"at most {files} open files", f"ulimit -n {_FEW_FILES}"),
        (
            0 <= processes < _FEW_PROCESSES,
            f"at most {processes} processes",
            "raise it: ulimit -u, or the container's limit",
        ),
    ]
    for kind, what, option in (
        (resource.RLIMIT_FSIZE, "file size", "-f"),
        (resource.RLIMIT_AS, "address space", "-v"),
        (resource.RLIMIT_CPU, "processor time", "-t"),
    ):
        value = resource.getrlimit(kind)[0]
        unit = "s" if kind == resource.RLIMIT_CPU else "bytes"
        low.append(
            (value != resource.RLIM_INFINITY, f"{what} limited to {value:,} {unit}", f"ulimit {option} unlimited")
        )
    wrong = [warning(text, remedy) for is_low, text, remedy in low if is_low]
    yield from wrong or [ok(f"{_number(files)} open files, {_number(processes)} processes")]


def shared_memory() -> Iterator[CheckResult]:
    """The memory through which loader processes pass their batches."""
    left = shared_memory_left()
    if left is None:
        yield ok("no limit on this system")
        return
    text = f"{left / _MIB:,.0f} MiB of /dev/shm can be written"
    if left < _SMALL_SHARED:
        yield warning(text, "needed by data.num_workers only: leave it at 0, or start the container with --shm-size=1g")
    else:
        yield ok(text)


def encoding() -> Iterator[CheckResult]:
    """Whether text is UTF-8 where this process reads and prints it."""
    found = {
        "files": locale.getpreferredencoding(False),
        "file names": sys.getfilesystemencoding(),
        "output": getattr(sys.stdout, "encoding", "utf-8"),
    }
    wrong = [f"{what} {name}" for what, name in found.items() if name.lower().replace("-", "") != "utf8"]
    if wrong:
        yield warning(f"not UTF-8: {', '.join(wrong)}", "export PYTHONUTF8=1, and unset PYTHONIOENCODING")
    else:
        yield ok("UTF-8")


def home() -> Iterator[CheckResult]:
    """The home folder, where other packages keep their caches."""
    given, folder = os.environ.get("HOME"), Path("~").expanduser()
    remedy = "set HOME, or HF_HOME and MPLCONFIGDIR, to a folder that can be written"
    if given is None:
        yield warning(f"HOME is not set; {folder} is used", remedy)
    elif not folder.is_dir():
        yield warning(f"HOME is {given!r}, which is not a folder", remedy)
    elif not os.access(folder, os.W_OK):
        yield warning(f"HOME is {given!r}, which cannot be written", remedy)
    else:
        yield ok(str(folder))


def network() -> Iterator[CheckResult]:
    """Whether the Hugging Face Hub answers."""
    only = "needed by sources of class Hub only"
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        yield ok(f"the Hub is not used: HF_HUB_OFFLINE is set ({only})")
        return
    hub = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    proxy = getproxies().get(urlsplit(hub).scheme)
    answer: list[str] = []
    # a name that cannot be resolved has no time limit of its own
    asking = threading.Thread(target=lambda: answer.append(_reach(proxy or hub)), daemon=True)
    asking.start()
    asking.join(2 * _SECONDS)
    through = f" through the proxy {urlsplit(proxy).hostname}" if proxy else ""
    said = answer[0] if answer else f"no answer in {2 * _SECONDS:.0f} s"
    yield ok(f"{hub}{through}: {said} ({only})")


def _reach(address: str) -> str:
    parts = urlsplit(address if "://" in address else f"//{address}")
    try:
        default = 80 if parts.scheme == "http" else 443
        socket.create_connection((parts.hostname or "", parts.port or default), timeout=_SECONDS).close()
    except (OSError, ValueError) as error:
        return f"not reachable, {error}"
    return "reachable"


def _most_processes() -> int:
    """The lower limit of the user and of the control group; -1 if there is none. A user's limit does not bind root."""
    user = -1 if os.geteuid() == 0 else resource.getrlimit(resource.RLIMIT_NPROC)[0]
    group = processes_left()
    return min((limit for limit in (user, group) if limit is not None and limit >= 0), default=-1)


def _number(limit: int) -> str:
    return "no limit on" if limit < 0 else f"{limit:,}"
