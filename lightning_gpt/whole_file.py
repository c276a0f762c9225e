"""Writing files atomically."""

import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from lightning_gpt.errors import WorkError
from lightning_gpt.system_error import refused_path


def write_file(path: Path, content: bytes | str) -> None:
    """Write a file atomically, creating missing folders: a kill leaves either the old file or the new one.

    Args:
        path: The file.
        content: Its whole content; text is encoded as UTF-8.

    Raises:
        WorkError: If the file cannot be written, for example because the disk is full.
    """
    try:
        with replacing(path) as file:
            file.write(content.encode() if isinstance(content, str) else content)
    except OSError as error:
        raise WorkError(
            f"{path} cannot be written: {error.strerror}; finished work is kept: fix this and rerun the command"
        ) from None


@contextmanager
def replacing(path: Path, check: Callable[[Path], None] | None = None) -> Iterator[BinaryIO]:
    """A new file that replaces ``path`` atomically when the context ends; the old file stays if the context fails.

    The new file is written in the same folder under a temporary name, so that the final rename never crosses file
    systems. The file is on the disk before it is renamed, and the rename before the context returns. Temporary files
    that a killed process left for the same ``path`` are removed first.

    Args:
        path: The file; missing folders are created.
        check: Called with the complete temporary file before it replaces the old one; an exception keeps the old one.

    Raises:
        OSError: If the file cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    remove_abandoned(path.parent, path.name)
    # the process number keeps two processes that write the same file apart
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            with suppress(OSError):  # a file system without locks; remove_abandoned then leaves its files alone
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield file
            file.flush()
            os.fsync(file.fileno())
            if check is not None:
                check(temporary)
            temporary.replace(path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise
    sync_folder(path.parent)


def create_output(output: str) -> Path:
    """Create the folder that the option ``output`` names, unless it is there.

    Raises:
        CallError: It cannot be a folder.
        WorkError: The disk is full.
    """
    folder = Path(output)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise refused_path(f"output {output!r} cannot be used as a folder", error) from None
    return folder


def is_missing(path: Path) -> bool:
    """Whether there is nothing at ``path``; False also where that cannot be known, as in a closed folder."""
    try:
        path.stat()
    except (FileNotFoundError, NotADirectoryError, ValueError):  # ValueError: a null character, which no name has
        return True
    except OSError:
        return False
    return False


def previous_of(path: Path) -> Path:
    """Where :func:`keep_previous` keeps what was at ``path`` before: ``last.previous.ckpt`` beside ``last.ckpt``."""
    return path.with_name(f"{path.stem}.previous{path.suffix}")


def keep_previous(path: Path) -> None:
    """Give a file or a folder of files its second name :func:`previous_of`, under which it stays when it is replaced.

    What had the second name before is removed, so that its space is free before the next is written.

    Raises:
        OSError: If the folder cannot be written.
    """
    if path.exists():
        take_over(path, previous_of(path))


def second_name(path: Path, name: Path) -> None:
    """Give a file, or all files of a folder, a second name, under which they stay when the first is replaced.

    Raises:
        OSError: There is something of that name, or it cannot be written.
    """
    if path.is_dir():
        name.mkdir()
        for file in path.iterdir():
            second_name(file, name / file.name)
        sync_folder(name)
        return
    try:
        name.hardlink_to(path)
    except OSError:  # a file system without hard links
        shutil.copyfile(path, name)


def take_over(path: Path, name: Path) -> None:
    """Give a file, or all files of a folder, a second name in place of what has it; a kill leaves no part of one.

    Raises:
        OSError: It cannot be written.
    """
    temporary = name.with_name(f"{name.name}.tmp")
    name.parent.mkdir(parents=True, exist_ok=True)
    remove(temporary)
    second_name(path, temporary)
    if path.is_dir() or name.is_dir():  # a folder replaces nothing, and nothing replaces one
        remove(name)
    temporary.replace(name)
    temporary.unlink(missing_ok=True)  # replacing a second name of the same file does nothing
    sync_folder(name.parent)


def remove(path: Path) -> None:
    """Remove a file, or a folder with all that is in it; nothing if there is neither."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def make_room(path: Path) -> Path:
    """Remove what is at ``path``; returns it, as the new name of something else."""
    remove(path)
    return path


def remove_abandoned(folder: Path, name: str = "*") -> None:
    """Remove the temporary files in ``folder`` whose process has ended; one that is still being written is locked.

    A temporary folder is removed with them.

    Args:
        folder: The folder.
        name: The file whose temporary files are removed, or a shell pattern.
    """
    for temporary in folder.glob(f"{name}.*.tmp"):
        if temporary.is_dir():  # made within one call, by the process that writes here
            shutil.rmtree(temporary, ignore_errors=True)
            continue
        with suppress(OSError), temporary.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            temporary.unlink()


def sync_folder(folder: Path) -> None:
    """Put the names in a folder on the disk, so that a rename survives a power failure."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # some network file systems have no fsync for folders
            os.fsync(descriptor)
    finally:
        os.close(descriptor)
