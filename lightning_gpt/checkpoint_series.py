"""The series of checkpoints that a run keeps, and the list of their SHA-256 sums.

A run's series is the folder ``checkpoints/series``: ``step_512.ckpt`` and so on, files or folders, and ``SHA256SUMS``,
which ``sha256sum --check`` reads too. Every file has a checksum of its own, but one that was exchanged for another, or
stands under the name of another step, still has a right one. So a reader compares the sum in the list and the step
that the checkpoint says it is of.
"""

import hashlib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from lightning_gpt.errors import CallError
from lightning_gpt.system_error import refused_path
from lightning_gpt.whole_file import write_file

LIST = "SHA256SUMS"
_NAME = re.compile(r"step_(0|[1-9]\d*)\.ckpt")
_LINE = re.compile(r"([0-9a-f]{64})  (\S+)")


def series_of(run: Path) -> Path:
    """The folder of a run's series."""
    return run / "checkpoints" / "series"


def path_of_step(series: Path, step: int) -> Path:
    """Where the checkpoint of a step is, or will be."""
    return series / f"step_{step}.ckpt"


def step_of(path: Path) -> int | None:
    """The step in the name of a checkpoint of a series; None for all other files."""
    found = _NAME.fullmatch(path.name)
    return None if found is None or path.parent.name != "series" else int(found[1])


def steps_in(series: Path) -> list[int]:
    """The steps in a series, in order; those being written are left out."""
    try:
        steps = [step_of(path) for path in series.iterdir()]
    except OSError:
        return []
    return sorted(step for step in steps if step is not None)


def listed(series: Path) -> dict[str, str]:
    """The SHA-256 of each file of a series, by its path below the folder; empty without a list.

    Raises:
        CallError: The list cannot be read, or has another form.
    """
    path = series / LIST
    try:
        lines = path.read_text("utf-8").splitlines()
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise refused_path(f"{path} cannot be read", error) from None
    except UnicodeDecodeError:
        lines = ["\0"]
    found = [_LINE.fullmatch(line) for line in lines]
    if None in found:
        raise CallError(f"{path} is not a list of SHA-256 sums")
    return {line[2]: line[1] for line in found if line is not None}


def enlist(series: Path, sums: Mapping[str, str]) -> None:
    """Add sums to the list; it is replaced atomically.

    Raises:
        CallError: The list that is there cannot be read.
        WorkError: It cannot be written.
    """
    steps = {name.split("/")[0] for name in sums}
    kept = {name: sum for name, sum in listed(series).items() if name.split("/")[0] not in steps}
    lines = sorted({**kept, **sums}.items(), key=lambda line: (step_of(series / line[0].split("/")[0]) or 0, line[0]))
    write_file(series / LIST, "".join(f"{sum}  {name}\n" for name, sum in lines))


def delist(series: Path, checkpoint: Path) -> None:
    """Take a checkpoint that is about to be replaced out of the list.

    Raises:
        CallError: The list cannot be read.
        WorkError: It cannot be written.
    """
    kept = {name: sum for name, sum in listed(series).items() if name.split("/")[0] != checkpoint.name}
    write_file(series / LIST, "".join(f"{sum}  {name}\n" for name, sum in kept.items()))


def sums_of(path: Path) -> dict[str, str]:
    """The SHA-256 of the file or files of a checkpoint, by their paths as in the list.

    Raises:
        OSError: One cannot be read.
    """
    return {str(file.relative_to(path.parent)): _sum(file) for file in _files(path)}


def require_listed(path: Path) -> None:
    """Refuse a checkpoint of a series whose files are not those that its list names.

    Raises:
        CallError: A sum differs, a file is missing, or the list is missing or has none for it.
    """
    expected = {name: sum for name, sum in listed(path.parent).items() if name.split("/")[0] == path.name}
    if not expected:
        raise CallError(f"checkpoint {str(path)!r} is not in {path.parent / LIST}, so it cannot be verified")
    try:
        found = sums_of(path)
    except OSError as error:
        raise refused_path(f"checkpoint {str(path)!r} cannot be read", error) from None
    for name, sum in expected.items():
        if found.get(name) != sum:
            raise CallError(
                f"checkpoint {str(path)!r} is not the one that was saved: the SHA-256 of {path.parent / name} is not "
                f"that in {LIST}"
            )


def require_step(path: Path, step: object) -> None:
    """Refuse a checkpoint of a series that is of another step than its name says.

    Raises:
        CallError: It is.
    """
    named = step_of(path)
    if named is not None and step != named:
        raise CallError(f"checkpoint {str(path)!r} is of step {step}, not of the step in its name")


def _files(path: Path) -> Iterator[Path]:
    if path.is_dir():
        yield from sorted(file for file in path.iterdir() if file.suffix == ".ckpt")
    else:
        yield path


def _sum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
