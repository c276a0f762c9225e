"""Checkpoints whose tensors are divided over files: a folder that several processes write together.

A folder holds the same content under the same names as the file that one process writes, in files of that format::

    last.ckpt/index.ckpt       all but the large tensors; where the pieces of those are; the checksums of the files
    last.ckpt/9f2c61d0-3.ckpt  the pieces that process 3 wrote in this save

A piece is a box of its tensor: an offset and a length along each dimension. A save writes its pieces under new names
first and then replaces the index atomically, so that the index always names whole files of one save. The files of the
save before are removed last.

:class:`Saved` reads both kinds of checkpoint, piece by piece; :func:`read_saved` reads one whole.
"""

import math
import os
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightning_gpt.checkpoint_file import read_checkpoint, reserve_of, stored_sum, write_checkpoint
from lightning_gpt.errors import CallError, shortened
from lightning_gpt.whole_file import is_missing

INDEX = "index.ckpt"
"""The file of a folder that names all others."""
PARTS = ("state_dict", "current_model_state", "optimizer")
"""What is divided into pieces: the weights, those in training where the former are their average, optimizer state."""

_TENSORS, _FILES = "lightning_gpt_tensors", "lightning_gpt_files"
_SEPARATOR = "|"  # in no name of a parameter

Box = tuple[tuple[int, ...], tuple[int, ...]]
"""Offsets and lengths, one of each for every dimension."""


@dataclass(frozen=True)
class StoredTensor:
    """A tensor of a checkpoint.

    Args:
        shape: Its whole shape.
        dtype: Of its elements.
        files: The file of each of its pieces.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    files: Mapping[Box, str]


def key_of(*path: str) -> str:
    """The name of a tensor among all of a checkpoint, such as that of ``("optimizer", parameter, "exp_avg")``."""
    return _SEPARATOR.join(path)


def path_of(key: str) -> list[str]:
    """The inverse of :func:`key_of`."""
    return key.split(_SEPARATOR)


def tensors_of(content: Mapping[str, Any]) -> Iterator[tuple[str, Tensor]]:
    """The tensors of a whole checkpoint that a folder divides into pieces, by their keys.

    The state of an optimizer that goes by numbers, as a module of another kind has it, is left as it is.
    """
    for part in PARTS[:2]:
        for name, tensor in content.get(part, {}).items():
            yield key_of(part, name), tensor
    for optimizer in content.get("optimizer_states", [])[:1]:
        for name, state in optimizer["state"].items():
            for key, value in state.items():
                if isinstance(value, Tensor) and isinstance(name, str):
                    yield key_of(PARTS[2], name, key), value


def without_tensors(content: Mapping[str, Any]) -> dict[str, Any]:
    """A checkpoint without what :func:`tensors_of` gives."""
    rest = {part: {} if part in PARTS[:2] else value for part, value in content.items()}
    for number, optimizer in enumerate(content.get("optimizer_states", [])[:1]):
        state = {
            name: {
                key: value for key, value in each.items() if not (isinstance(value, Tensor) and isinstance(name, str))
            }
            for name, each in optimizer["state"].items()
        }
        rest["optimizer_states"] = [*rest["optimizer_states"]]
        rest["optimizer_states"][number] = {**optimizer, "state": {name: each for name, each in state.items() if each}}
    return rest


def _put(content: dict[str, Any], key: str, tensor: Tensor) -> None:
    """Put a tensor where :func:`tensors_of` finds it."""
    part, *names = path_of(key)
    if part == PARTS[2]:
        content["optimizer_states"][0]["state"].setdefault(names[0], {})[names[1]] = tensor
    else:
        content[part][names[0]] = tensor


def is_folder(path: str | Path) -> bool:
    """Whether there is a checkpoint folder, whole or not, at ``path``."""
    return os.path.isfile(Path(path) / INDEX)  # False also where that cannot be known


def new_file_names(count: int) -> list[str]:
    """Names of the files of a save by ``count`` processes, which no other save has."""
    save = uuid.uuid4().hex[:8]
    return [f"{save}-{process}.ckpt" for process in range(count)]


def write_pieces(pieces: Mapping[str, Mapping[Box, Tensor]], path: Path) -> str:
    """Write the pieces of one process; returns the file's checksum.

    Args:
        pieces: On the CPU, by the key of their tensor and their box.
        path: The file.

    Raises:
        WorkError: It cannot be written.
    """
    # a piece that is a view would be written with the whole tensor that it is a view of
    owned = {
        key: {box: tensor if is_whole_storage(tensor) else tensor.clone() for box, tensor in each.items()}
        for key, each in pieces.items()
    }
    write_checkpoint({"pieces": owned}, path)
    return stored_sum(path)


def is_whole_storage(tensor: Tensor) -> bool:
    """Whether a tensor is all of the memory that it is kept in, in order."""
    return tensor.is_contiguous() and tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()


def write_index(
    folder: Path, content: Mapping[str, Any], tensors: Mapping[str, StoredTensor], sums: Mapping[str, str]
) -> None:
    """Make a save the folder's: replace its index, then remove the files of other saves.

    Args:
        folder: The folder; the files of the save are in it.
        content: The checkpoint without its tensors.
        tensors: Every tensor of the checkpoint by its key.
        sums: The checksum of each file.

    Raises:
        WorkError: It cannot be written. The folder is the save before.
    """
    described = {
        key: [
            list(each.shape),
            str(each.dtype).removeprefix("torch."),
            [[*box, file] for box, file in each.files.items()],
        ]
        for key, each in tensors.items()
    }
    write_checkpoint({**content, _TENSORS: described, _FILES: dict(sums)}, folder / INDEX)
    for file in folder.glob("*.ckpt*"):
        if file.name != INDEX and file.name not in sums:
            with suppress(OSError):
                file.unlink()


class Saved:
    """A checkpoint, a file or a folder, whose tensors are read piece by piece.

    The checksum of each file is checked before anything of it is used. A process that needs the pieces of a few files
    reads only those.

    Args:
        path: The file or the folder.

    Raises:
        CallError: It is missing, unreadable, truncated, corrupt, or not a checkpoint.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.content: dict[str, Any]
        self.tensors: dict[str, StoredTensor] = {}
        self._whole: dict[str, Tensor] = {}
        self._sums: dict[str, str] = {}
        self._open: dict[str, dict[str, dict[Box, Tensor]]] = {}
        if is_folder(self.path) or _has_pieces(self.path):
            self._read_index()
        else:
            self._hold(read_checkpoint(self.path))

    def _hold(self, content: Mapping[str, Any]) -> None:
        self._whole = dict(tensors_of(content))
        self.content = without_tensors(content)
        for key, tensor in self._whole.items():
            shape = tuple(tensor.shape)
            self.tensors[key] = StoredTensor(shape, tensor.dtype, {((0,) * len(shape), shape): ""})

    def _read_index(self) -> None:
        if is_missing(self.path / INDEX):
            raise self._incomplete(f"its index, {INDEX}")
        content = read_checkpoint(self.path / INDEX, of=self.path)
        try:
            self._sums = {str(file): str(sum) for file, sum in content.pop(_FILES).items()}
            for key, (shape, dtype, pieces) in content.pop(_TENSORS).items():
                files = {(tuple(offsets), tuple(sizes)): str(file) for offsets, sizes, file in pieces}
                self.tensors[key] = StoredTensor(tuple(shape), _dtype(dtype), files)
                _check_boxes(tuple(shape), files)
            self.content = content
            for key in self.tensors:
                _put(without_tensors(content), key, torch.empty(0))  # there is a place for each
        except (AttributeError, IndexError, KeyError, TypeError, ValueError):
            raise self._foreign() from None

    def _incomplete(self, missing: str) -> CallError:
        advice = reserve_of(self.path, "; copy it again, or use another one")
        return CallError(f"checkpoint {str(self.path)!r} is incomplete: it lacks {shortened(missing, 160)}{advice}")

    def _foreign(self) -> CallError:
        return CallError(f"checkpoint {str(self.path)!r} was not written by lightning-gpt fit")

    def piece(self, key: str, offsets: Iterable[int]) -> Tensor:
        """The piece of a tensor that begins at ``offsets``; it stays in its file until it is used.

        Raises:
            CallError: Its file is missing, truncated, corrupt, or of another save.
        """
        if key in self._whole:
            return self._whole[key]
        first = tuple(offsets)
        box, file = next(each for each in self.tensors[key].files.items() if each[0][0] == first)
        if file not in self._open:
            self._open[file] = self._read_pieces(file)
        piece = self._open[file].get(key, {}).get(box)
        if piece is None or tuple(piece.shape) != box[1]:
            raise self._foreign()
        return piece

    def _read_pieces(self, file: str) -> dict[str, dict[Box, Tensor]]:
        path = self.path / file
        if Path(file).name != file or file not in self._sums:
            raise self._foreign()
        if is_missing(path):
            missing = [name for name in self._sums if is_missing(self.path / name)]
            raise self._incomplete(f"{len(missing)} of its {len(self._sums)} files of tensors: {', '.join(missing)}")
        content = read_checkpoint(path, of=self.path)
        if stored_sum(path) != self._sums[file]:
            raise CallError(f"checkpoint {str(self.path)!r}: its file {file} is of another save{reserve_of(self.path)}")
        pieces: dict[str, dict[Box, Tensor]] = content.get("pieces", {})
        return pieces

    def tensor(self, key: str) -> Tensor:
        """A whole tensor, on the CPU."""
        stored = self.tensors[key]
        if len(stored.files) == 1 and next(iter(stored.files))[1] == stored.shape:
            return self.piece(key, (0,) * len(stored.shape))
        whole = torch.empty(stored.shape, dtype=stored.dtype)
        for offsets, sizes in stored.files:
            part = whole
            for dim, (offset, size) in enumerate(zip(offsets, sizes, strict=True)):
                part = part.narrow(dim, offset, size)
            part.copy_(self.piece(key, offsets))
        return whole

    def whole(self) -> dict[str, Any]:
        """The content as one process writes it in a file."""
        content = without_tensors(self.content)
        for key in self.tensors:
            _put(content, key, self.tensor(key))
        return content


def _has_pieces(path: Path) -> bool:
    """Whether a folder holds files of a save, but perhaps no index."""
    with suppress(OSError):
        return path.is_dir() and any(path.glob("*-*.ckpt"))
    return False


def _check_boxes(shape: tuple[int, ...], boxes: Iterable[Box]) -> None:
    """Raise ``ValueError`` unless the boxes lie inside the shape and hold as many elements as it."""
    elements = 0
    for offsets, sizes in boxes:
        if any(
            offset < 0 or size < 0 or offset + size > most
            for offset, size, most in zip(offsets, sizes, shape, strict=True)
        ):
            raise ValueError("a piece is outside its tensor")
        elements += math.prod(sizes)
    if elements != math.prod(shape):
        raise ValueError("a part of the tensor is missing")


def _dtype(name: str) -> torch.dtype:
    dtype = getattr(torch, name)
    if not isinstance(dtype, torch.dtype):
        raise TypeError(name)
    return dtype


def read_saved(path: str | Path, mmap: bool = True) -> dict[str, Any]:
    """The content of a checkpoint, a file or a folder, on the CPU; no code in it is ever run.

    Args:
        path: The file or the folder.
        mmap: Whether tensors may stay in their files until they are used, rather than being copied into memory.

    Raises:
        CallError: It is missing, unreadable, truncated, corrupt, or not a checkpoint; the message says which.
        WorkError: The process may open no further file.
    """
    path = Path(path)
    if not (is_folder(path) or _has_pieces(path)):
        return read_checkpoint(path, mmap)
    content = Saved(path).whole()
    if not mmap:
        for key, tensor in tensors_of(content):
            _put(content, key, tensor.clone())
    return content
