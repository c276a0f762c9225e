"""A folder that appears whole, under its name, or not at all."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lightning_gpt.errors import CallError, WorkError
from lightning_gpt.whole_file import sync_folder


@contextmanager
def new_folder(output: Path) -> Iterator[Path]:
    """A folder that gets the name ``output`` if the context ends well, and is removed if not.

    Raises:
        CallError: There is something of this name.
        WorkError: It cannot be written.
    """
    if output.exists():
        raise CallError(f"{output} exists; choose another output, or delete it")
    work = output.with_name(f"{output.name}.{os.getpid()}.tmp")
    try:
        work.mkdir(parents=True)
        yield work
        work.replace(output)
        sync_folder(output.parent)
    except OSError as error:
        raise WorkError(f"{output} cannot be written: {error.strerror}") from None
    finally:
        shutil.rmtree(work, ignore_errors=True)
