"""What is killed: how a kind of run is started and resumed, how far it is, and what must be equal in the end."""

import hashlib
import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml

Moment = str
"""Where a run was when it was hit: ``start-up``, ``step``, ``inside a save``, ``validation``, ``exit`` and the like."""


class Victim(ABC):
    """A kind of run. A new one is one class, named in ``SUBJECTS`` of :mod:`benchmarks.chaos.subjects`.

    Args:
        root: The folder for what all its runs share, such as their config.
        forked: Whether its first process is a fork of one that has imported the package. Its children are not.
    """

    name: str
    has_children = True
    run_folders: Sequence[str] = ()
    """Patterns of the folders in which a run keeps its results, and which are deleted under it."""
    inner_folders: Sequence[str] = ()
    """Folders in them that are deleted alone."""

    def __init__(self, root: Path, forked: bool) -> None:
        self.root = root
        self.forked = forked

    @abstractmethod
    def write_inputs(self) -> None:
        """Write what its runs read into ``root``."""

    @abstractmethod
    def call(self, folder: Path) -> list[str]:
        """The command line that starts the run in ``folder``, or resumes the one that is there."""

    @abstractmethod
    def moment(self, folder: Path) -> Moment:
        """Where the run in ``folder`` is; a save is told by its temporary file, whatever this says."""

    @abstractmethod
    def kept(self, folder: Path) -> Mapping[str, int]:
        """By name, how much the run in ``folder`` holds that a kill may not take away, as numbers that only grow."""

    def owed(self, folder: Path, waited: bool) -> Mapping[str, int]:
        """The least that ``kept`` must say, told by what the run in ``folder`` has reported otherwise.

        ``waited`` says whether the run ended by itself, which it does after what it was writing.
        """
        return {}

    @abstractmethod
    def done(self, folder: Path) -> bool:
        """Whether the run has finished."""

    @abstractmethod
    def differences(self, folder: Path, alone: Path) -> Iterator[str]:
        """What differs between the finished run in ``folder`` and the one that was left alone."""


def write_yaml(path: Path, content: Mapping[str, Any]) -> None:
    """Write a config."""
    path.write_text(yaml.safe_dump(dict(content)), encoding="utf-8")


def unequal(ours: Any, theirs: Any, where: str = "") -> Iterator[str]:
    """The places where two nested structures of tensors and plain values differ in type, shape or any bit."""
    if isinstance(ours, Mapping) and isinstance(theirs, Mapping):
        for key in {**ours, **theirs}:
            if key in ours and key in theirs:
                yield from unequal(ours[key], theirs[key], f"{where}[{key!r}]")
            else:
                yield f"{where}[{key!r}] is in one only"
    elif isinstance(ours, list | tuple) and isinstance(theirs, list | tuple) and len(ours) == len(theirs):
        for position, pair in enumerate(zip(ours, theirs, strict=True)):
            yield from unequal(*pair, f"{where}[{position}]")
    elif isinstance(ours, torch.Tensor) and isinstance(theirs, torch.Tensor):
        # equal_nan is not needed: weights that are not finite are never saved
        if ours.dtype != theirs.dtype or not torch.equal(ours, theirs):
            yield f"{where} differs"
    elif ours != theirs:
        yield f"{where} is {ours!r}, was {theirs!r}"


def digests(folder: Path) -> dict[str, str]:
    """The SHA-256 of every file below ``folder``, by relative path."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def temporary_files(folder: Path) -> list[Path]:
    """The temporary files of :func:`lightning_gpt.whole_file.replacing` below ``folder``."""
    # os.walk, unlike glob, does not mind a folder that is renamed meanwhile
    return [Path(place, name) for place, _, names in os.walk(folder) for name in names if name.endswith(".tmp")]
