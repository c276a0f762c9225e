"""The file format of checkpoints: the zip file of ``torch.save`` with a checksum, which every reader checks.

The checksum is the XXH3-128 of the whole file up to the checksum itself. It is stored in the zip file's own comment
field, the last bytes of the file. The file therefore stays one that ``torch.load`` and ``unzip`` read, and it can be
checked wherever it is copied, without a second file. In a checkpoint without a checksum (written by ``torch.save`` or
by an earlier version), the CRC-32 of each zip entry is checked instead.
"""

import errno
import os
import stat
import zipfile
from pathlib import Path

# what torch.load raises; nothing is unpickled here
from pickle import UnpicklingError  # nosec B403
from typing import Any, BinaryIO, cast

import torch
from xxhash import xxh3_128

from lightning_gpt.errors import CallError, WorkError
from lightning_gpt.system_error import refused_path
from lightning_gpt.whole_file import is_missing, previous_of, replacing

_LABEL = b"lightning-gpt XXH3-128 "
_COMMENT_BYTES = len(_LABEL) + xxh3_128().digest_size * 2
_COMMENT_LENGTH = _COMMENT_BYTES.to_bytes(2, "little")  # the zip field in front of the comment
_ZIP_START, _ZIP_END = b"PK\x03\x04", b"PK\x05\x06"
_ZIP_END_BYTES = 22  # the end record without its comment
_CHUNK_BYTES = 4 * 2**20


def write_checkpoint(content: dict[str, Any], path: Path) -> None:
    """Write a checkpoint atomically: it replaces an old one only after it was read back from the disk and checked.

    Args:
        content: Tensors, numbers and text.
        path: The file; missing folders are created.

    Raises:
        WorkError: If it cannot be written, for example because the disk is full. An old file is kept as it was.
    """
    try:
        with replacing(path, check=_check_written) as file:
            _write(content, file)
    except OSError as error:
        kept = "; the old file is kept as it was" if path.is_file() else ""
        raise WorkError(f"checkpoint {str(path)!r} cannot be written: {error.strerror}{kept}") from None


def _write(content: dict[str, Any], file: BinaryIO) -> None:
    summed = _Summed(file)
    try:
        torch.save(content, cast(BinaryIO, summed))
    except RuntimeError:
        if summed.error is not None:  # torch reports a failed write without its cause
            raise summed.error from None
        raise
    summed.end()


class _Summed:
    """A file for ``torch.save`` that sums all bytes and passes them on, and appends the sum as the zip file's comment.

    Args:
        file: Where the bytes go.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._sum = xxh3_128()
        self._held = b""  # the last two bytes, at the end the length of the zip file's comment
        self.error: OSError | None = None

    def write(self, data: bytes) -> int:
        """Pass bytes on, except the last two so far."""
        given = memoryview(data).cast("B")
        try:
            if len(given) >= 2:
                self._put(self._held)
                self._put(given[:-2])
                self._held = bytes(given[-2:])
            else:
                joined = self._held + given
                self._put(joined[:-2])
                self._held = joined[-2:]
        except OSError as error:
            self.error = error
            raise
        return len(given)

    def flush(self) -> None:
        """Nothing to do: the file is flushed at its end."""

    def end(self) -> None:
        """Write the comment and the length field in front of it; call it once, after ``torch.save``."""
        assert self._held == b"\0\0", "torch.save wrote a zip file with a comment"
        self._put(_COMMENT_LENGTH)
        self._file.write(_LABEL + self._sum.hexdigest().encode())

    def _put(self, data: bytes | memoryview) -> None:
        self._sum.update(data)
        self._file.write(data)


def _check_written(path: Path) -> None:
    """Read a file back, from the disk rather than from memory where the system allows it, and check its sum.

    Raises:
        OSError: If what is read is not what was written.
    """
    with path.open("rb") as file:
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        if _has_sum(file) and _sum_is_right(file):
            return
    raise OSError(errno.EIO, "the disk does not return what was written to it")


def read_checkpoint(path: Path, mmap: bool = True, of: Path | None = None) -> dict[str, Any]:
    """The content of a checkpoint file, on the CPU, after its checksum was checked; no code in it is ever run.

    Args:
        path: The file.
        mmap: Whether tensors stay in the file until they are used, rather than being copied into memory.
        of: The folder, as of :mod:`~lightning_gpt.checkpoint_folder`, that the file is a part of.

    Raises:
        CallError: If the file is missing, unreadable, truncated, corrupt, or not a checkpoint; says which.
        WorkError: If the process may open no further file.
    """
    if is_missing(path):
        raise CallError(f"checkpoint {str(path)!r} does not exist{reserve_of(of or path)}")
    try:
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            raise CallError(f"checkpoint {str(path)!r} is a folder; name a file in it")
        if not stat.S_ISREG(mode):
            raise CallError(f"checkpoint {str(path)!r} is not a regular file")
        problem = _problem(path, reserve_of(of or path, "; copy it again, or use another one"))
    except OSError as error:
        raise refused_path(f"checkpoint {str(path)!r} cannot be read", error) from None
    if problem is not None:
        raise CallError(f"checkpoint {str(path)!r} ({path.stat().st_size:,} bytes) {problem}")
    content = read_pickled(path, "checkpoint", mmap)
    if not isinstance(content, dict):
        raise CallError(f"checkpoint {str(path)!r} was not written by lightning-gpt fit")
    return content


def read_pickled(path: Path, what: str, mmap: bool = True) -> Any:
    """The content of a file of ``torch.save``, on the CPU; no code in it is ever run.

    Args:
        path: The file.
        what: What the file is, for messages.
        mmap: As in :func:`read_checkpoint`.

    Raises:
        CallError: It cannot be read, is no such file, or holds more than tensors, numbers and text.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except OSError as error:
        raise refused_path(f"{what} {str(path)!r} cannot be read", error) from None
    except UnpicklingError:
        raise CallError(
            f"{what} {str(path)!r} holds Python objects; only tensors, numbers and text are loaded"
        ) from None
    except (RuntimeError, EOFError, ValueError, KeyError):
        raise CallError(f"{what} {str(path)!r} is not a checkpoint of PyTorch") from None


def reserve_of(path: Path, otherwise: str = "") -> str:
    """The end of a message about a damaged checkpoint: the one before it, if that is kept."""
    previous = previous_of(path)
    return f"; use the one before it, {str(previous)!r}" if os.path.exists(previous) else otherwise


def _problem(path: Path, advice: str) -> str | None:
    """What is wrong with a file's bytes, and ``advice``; None if nothing is."""
    with path.open("rb") as file:
        if _has_sum(file):
            return None if _sum_is_right(file) else f"is corrupt: its checksum is wrong{advice}"
        file.seek(-min(file.seek(0, os.SEEK_END), _ZIP_END_BYTES + _COMMENT_BYTES), os.SEEK_END)
        end_is_cut = _LABEL in file.read()
        file.seek(0)
        start = file.read(len(_ZIP_START))
    if not start:
        return f"is empty{advice}"
    if start == _ZIP_START and (end_is_cut or not zipfile.is_zipfile(path)):
        return f"is truncated: its end is missing{advice}"
    if start != _ZIP_START:
        return "is not a checkpoint of PyTorch"
    try:
        with zipfile.ZipFile(path) as archive:
            entry = archive.testzip()
    except (zipfile.BadZipFile, NotImplementedError, ValueError, EOFError, RuntimeError) as error:
        return f"is corrupt: {error}{advice}"
    return None if entry is None else f"is corrupt: the CRC-32 of its entry {entry} is wrong{advice}"


def stored_sum(path: Path) -> str:
    """The checksum that a checkpoint file ends with, in hexadecimal digits.

    Raises:
        OSError: It cannot be read.
    """
    with path.open("rb") as file:
        file.seek(-xxh3_128().digest_size * 2, os.SEEK_END)
        return file.read().decode("ascii", errors="replace")


def _has_sum(file: BinaryIO) -> bool:
    """Whether the file ends with a checksum as this module writes it."""
    size = file.seek(0, os.SEEK_END)
    if size < _ZIP_END_BYTES + _COMMENT_BYTES:
        return False
    file.seek(-_ZIP_END_BYTES - _COMMENT_BYTES, os.SEEK_END)
    end = file.read(_ZIP_END_BYTES + _COMMENT_BYTES)
    return end.startswith(_ZIP_END) and end[_ZIP_END_BYTES:].startswith(_LABEL)


def _sum_is_right(file: BinaryIO) -> bool:
    left = file.seek(-_COMMENT_BYTES, os.SEEK_END)
    expected = file.read()[len(_LABEL) :]
    summed, buffer = xxh3_128(), bytearray(_CHUNK_BYTES)
    file.seek(0)
    while left:
        count = file.readinto(memoryview(buffer)[: min(left, len(buffer))])  # type: ignore[attr-defined]
        if not count:
            return False
        summed.update(memoryview(buffer)[:count])
        left -= count
    return summed.hexdigest().encode() == expected
