"""The file systems that runs are killed on."""

import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_OTHER = Path("/dev/shm")  # nosec B108 - only folders of tempfile are made in it
_SMALL_MEGABYTES = 128
ONE, TWO, SMALL = "one file system", "two file systems", "small disk"


@contextmanager
def places(out: Path) -> Iterator[dict[str, Path]]:
    """Folders by name of the place, as far as this machine has them.

    ``ONE``: on the file system of TMPDIR. ``TWO``: on another. ``SMALL``: on one of its own of 128 MB, mounted here.
    """
    one = Path(tempfile.mkdtemp(prefix="chaos-"))
    found, mounted = {ONE: one}, out / "small-disk"
    if _OTHER.is_dir() and _OTHER.stat().st_dev != one.stat().st_dev:
        found[TWO] = Path(tempfile.mkdtemp(prefix="chaos-", dir=_OTHER))
    mounted.mkdir(exist_ok=True)
    size = f"size={_SMALL_MEGABYTES}m"
    if shutil.which("mount") and not _run("mount", "-t", "tmpfs", "-o", size, "none", str(mounted)):
        found[SMALL] = mounted
    try:
        yield found
    finally:
        if SMALL in found:
            _run("umount", str(mounted))
        for name in (ONE, TWO):
            if name in found:
                shutil.rmtree(found[name])


def _run(*command: str) -> int:
    return subprocess.run(command, capture_output=True, check=False).returncode
