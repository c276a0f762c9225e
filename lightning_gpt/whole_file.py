"""Files that are whole or not there, whatever happens while they are written."""

import os
from contextlib import suppress
from pathlib import Path

from lightning_gpt.errors import WorkError


def write_file(path: Path, content: bytes | str) -> None:
    """Write a file, and its folders where they are missing, in one step: a kill leaves the old file or the new one.

    Args:
        path: The file.
        content: All of it; text as UTF-8.

    Raises:
        WorkError: Where the system does not let it be written, as on a full disk.
    """
    # the process's number keeps two that write the same file out of each other's way
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
            f"{path} cannot be written: {error.strerror}; what is done is kept: mend this, and run the command again"
        ) from None
