"""The disk that runs are written to, and the folder of temporary files."""

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from lightning_gpt.doctor.finding import CheckResult, ok, problem, warning
from lightning_gpt.doctor.machine import GIB
from lightning_gpt.whole_file import sync_folder

_MIB = 2**20
_LITTLE_SPACE = 2 * GIB
_MOUNTS = Path("/proc/self/mountinfo")
_NETWORK = ("nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "afs", "ceph", "lustre", "gpfs", "beegfs", "glusterfs")


def runs() -> Iterator[CheckResult]:
    """Whether a checkpoint can be written as ``fit`` writes it: space, fsync, atomic rename, locks."""
    folder = _existing(Path("runs"))
    try:
        locks, cases = _try_out(folder)
    except OSError as error:
        yield problem(
            f"{_absolute(folder)} cannot be written: {error.strerror}",
            "start commands in a folder that you can write to, or free space",
        )
        return
    free = shutil.disk_usage(folder).free
    text = f"{_absolute(folder)}: {free / GIB:.1f} GiB free; written, synced, renamed and read back"
    if free < _LITTLE_SPACE:
        yield warning(text, "free space: each save needs room for one more checkpoint")
    else:
        yield ok(text)
    if not locks:
        yield warning(
            f"{_absolute(folder)} has no file locks", "let only one command write to a study or a run at a time"
        )
    if not cases:
        yield warning(
            f"{_absolute(folder)} does not distinguish upper and lower case", "give runs names that differ in more"
        )


def file_system() -> Iterator[CheckResult]:
    """The kind of file system that runs are written to."""
    folder = _existing(Path("runs"))
    kind = _kind(folder)
    if kind in ("tmpfs", "ramfs"):
        yield warning(f"runs are on {kind}: in memory, lost at a reboot", "start commands in a folder on a disk")
    elif kind == "overlay":
        yield warning("runs are on overlay: deleted with the container", "mount a volume and start commands in it")
    elif kind in _NETWORK or kind.startswith("fuse."):
        yield warning(
            f"runs are on {kind}, over a network: locks and renames are the server's",
            "keep checkpoints.keep at 2, and read prepared data from a local disk",
        )
    else:
        yield ok(f"runs are on {kind or 'a file system of unknown kind'}")


def temporary_files() -> Iterator[CheckResult]:
    """The folder of temporary files."""
    try:
        folder = Path(tempfile.gettempdir())
    except FileNotFoundError:
        yield problem("no folder for temporary files can be written", "export TMPDIR=FOLDER, a folder you can write to")
        return
    wanted = os.environ.get("TMPDIR")
    if wanted and Path(wanted).resolve() != folder.resolve():
        yield warning(f"TMPDIR is {wanted!r}, which cannot be written; {folder} is used", "create it, or unset TMPDIR")
        return
    free = shutil.disk_usage(folder).free
    same = os.stat(folder).st_dev == os.stat(_existing(Path("runs"))).st_dev
    where = (
        "the same file system as runs" if same else "not the file system of runs (checkpoints are not written there)"
    )
    text = f"{folder}: {free / GIB:.1f} GiB free, {where}"
    if free < 100 * _MIB:
        yield warning(text, "free space there, or set TMPDIR to another folder")
    else:
        yield ok(text)


def _existing(folder: Path) -> Path:
    """The folder, or the working folder while it does not exist."""
    return folder if folder.is_dir() else Path()


def _absolute(folder: Path) -> str:
    return os.path.abspath(folder)


def _try_out(folder: Path) -> tuple[bool, bool]:
    """Write, sync, rename and read a small file; returns whether locks work and whether upper and lower case differ.

    Raises:
        OSError: If one of the steps fails.
    """
    content = os.urandom(_MIB)
    with tempfile.TemporaryDirectory(prefix=".doctor-", dir=folder) as place:
        written, renamed = Path(place) / "written", Path(place) / "renamed"
        renamed.write_bytes(b"old")
        with written.open("wb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                locks = True
            except OSError:
                locks = False
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        written.replace(renamed)
        sync_folder(Path(place))
        if renamed.read_bytes() != content:
            raise OSError(5, "it does not return what was written to it")
        return locks, not (Path(place) / "RENAMED").exists()


def _kind(folder: Path) -> str:
    """The name of a folder's file system; empty outside Linux."""
    if not _MOUNTS.exists():
        return ""
    place, found = Path(os.path.realpath(folder)), ("", "")
    for line in os.fsdecode(_MOUNTS.read_bytes()).splitlines():
        before, _, after = line.partition(" - ")
        mount = before.split()[4].encode("utf-8", "surrogateescape").decode("unicode_escape")
        if place.is_relative_to(mount) and len(mount) >= len(found[0]):  # a later mount hides an earlier one
            found = mount, after.split()[0]
    return found[1]
