"""Writing files atomically."""

import os
from contextlib import suppress
from pathlib import Path

from lightning_gpt.errors import WorkError


def write_file(path: Path, content: bytes | str) -> None:
    """Write a file atomically, creating missing folders: a kill leaves either the old file or the new one.

    Args:
        path: The file.
        content: Its whole content; text is encoded as UTF-8.

    Raises:
        WorkError: If the file cannot be written, for example because the disk is full.
    """
    # the process number keeps two processes that write the same file apart
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with temporary.open("wb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink()
        raise WorkError(
            f"{path} cannot be written: {error.strerror}; finished work is kept: fix this and rerun the command"
        ) from None
