"""What the operating system or the memory refuses, in a line that names the file or the size."""

import errno
import os
import re
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from lightning_gpt.errors import CallError, WorkError

_IMPOSSIBLE = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG, errno.ELOOP)
_OF_MACHINE = (errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOSPC, errno.EDQUOT)
_OF_WRITING = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EBADF)
_ADVICE = {errno.EMFILE: "raise the limit with ulimit -n", errno.ENOSPC: "free some space and rerun the command"}
_NO_MEMORY = "not enough memory"
_OF_TORCH = (  # what torch raises RuntimeError with
    (re.compile(r"tried to allocate ([\d.]+ ?\w*)", re.IGNORECASE), _NO_MEMORY + ": an array of {} was needed"),
    (re.compile(r"(?:Storage size calculation overflowed|numel: integer multiplication overflow)()"), _NO_MEMORY),
    (
        re.compile(r"gloo[\s\S]*(Connection closed by peer|Connection reset by peer|Broken pipe|Connection refused)"),
        "another process of this run has ended ({}); its own message says why",
    ),
    (re.compile(r"can't start new (thread)"), "the system allows no further {}: see ulimit -u"),
)


def described(error: BaseException) -> str | None:
    """One line for an error of the operating system, of memory, or of the output's encoding; None for any other."""
    if isinstance(error, UnicodeEncodeError):
        text = error.object[error.start : error.end]
        return f"the output's encoding, {error.encoding}, has no {text!a}; set PYTHONIOENCODING=utf-8"
    if isinstance(error, RecursionError):
        return "the input is nested too deeply"
    if isinstance(error, OSError) and error.errno is not None:
        reason = error.strerror or type(error).__name__
        place = _place(error)
        advice = _ADVICE.get(error.errno)
        return (f"{place}: " if place else "") + reason + (f"; {advice}" if advice else "")
    if isinstance(error, MemoryError | RuntimeError):
        for pattern, message in _OF_TORCH:
            found = pattern.search(str(error))
            if found:
                return message.format(_size(found[1]))
    if isinstance(error, MemoryError):
        return f"{_NO_MEMORY}: {error}" if str(error) else _NO_MEMORY
    return None


def refused_path(what: str, error: OSError, allowed: str = "") -> CallError | WorkError:
    """The error for a path of the call that cannot be used: a wrong call, unless the machine has run out of something.

    Args:
        what: The path and what failed, such as ``config file 'x.yaml' cannot be read``.
        error: Why.
        allowed: What may be given instead, for a wrong call.
    """
    if error.errno in _OF_MACHINE:
        advice = _ADVICE.get(error.errno)
        return WorkError(f"{what}: {error.strerror}" + (f"; {advice}" if advice else ""))
    return CallError(f"{what}: {error.strerror}" + (f"; {allowed}" if allowed else ""))


def is_of_call(error: BaseException, args: Sequence[str]) -> bool:
    """Whether ``error`` is about a path that the command line ``args`` names and that cannot be what it is used as."""
    if not isinstance(error, OSError) or error.errno not in _IMPOSSIBLE or not error.filename:
        return False
    path = Path(os.fsdecode(error.filename))
    values = (value for argument in args for value in (argument, argument.partition("=")[2]) if value)
    return any(str(path) in value or value in path.parts or Path(value) in path.parents for value in values)


def _place(error: OSError) -> str:
    """The file that an error is about; an error of writing names none."""
    if isinstance(error.filename, str | bytes | os.PathLike):
        return repr(os.fsdecode(error.filename))
    return "standard output or a file cannot be written" if error.errno in _OF_WRITING else ""


def _size(given: str) -> str:
    number, _, unit = given.partition(" ")
    return f"{int(number):,} {unit or 'bytes'}" if number.isdigit() else given


def open_standard_streams() -> None:
    """Open standard streams that the caller has closed on the null device, so that no file takes their place."""
    while (handle := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(handle)
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode))  # noqa: SIM115 - it stays open


def discard_output() -> None:
    """Send what standard streams still hold to the null device if it cannot be written, so that the end is quiet."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            with suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
