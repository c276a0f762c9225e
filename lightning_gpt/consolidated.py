"""A checkpoint as one safetensors file, and back, without changing a bit.

The file holds the tensors of the checkpoint: its weights under their own names, such as
``model.blocks.0.attention.qkv.weight``, and the rest under the keys of :mod:`~lightning_gpt.checkpoint_folder`. Its
metadata has one entry, :data:`ENTRY`, a JSON object:

- ``content``: everything else in the checkpoint by its name, among it the model's name and config
- ``sums``: the XXH3-128 of each tensor's type, shape and bytes, in the order of the checkpoint
- ``sum``: that of the two before
"""

import json
import math
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from xxhash import xxh3_128

from lightning_gpt.checkpoint_folder import (
    PARTS,
    Box,
    Saved,
    StoredTensor,
    is_folder,
    is_whole_storage,
    key_of,
    new_file_names,
    path_of,
    write_index,
    write_pieces,
)
from lightning_gpt.errors import CallError, WorkError
from lightning_gpt.whole_file import remove_abandoned, sync_folder

ENTRY = "lightning_gpt"
"""The entry of the file's metadata."""
_INSIDE = "content"  # the part that tensors of other entries than PARTS are named by


def consolidate(source: str | Path, target: str | Path) -> None:
    """Write a checkpoint, a folder or a file, as one safetensors file.

    Args:
        source: The checkpoint.
        target: The file; an old one is replaced once the new one is whole.

    Raises:
        CallError: The checkpoint cannot be read, holds what such a file cannot hold, or ``target`` is a folder.
        WorkError: The file cannot be written.
    """
    saved, target = Saved(source), Path(target)
    if target.is_dir():
        raise CallError(f"{str(target)!r} is a folder; name the file to be written, such as model.safetensors")
    tensors = {_name(key): saved.tensor(key) for key in saved.tensors}
    described = _described(saved.content, "", tensors, Path(source))
    sums = {name: _sum(tensor) for name, tensor in tensors.items()}
    _write(_apart(tensors), _text({"content": described, "sums": sums}), target)


def from_consolidated(source: str | Path, target: str | Path) -> None:
    """Write what :func:`consolidate` has written as a checkpoint folder again.

    Args:
        source: The file.
        target: The folder; a checkpoint folder of before is replaced once the new one is whole.

    Raises:
        CallError: The file is missing, damaged or was not written by :func:`consolidate`, or ``target`` is in use.
        WorkError: The folder cannot be written.
    """
    source, target = Path(source), Path(target)
    if target.exists() and not is_folder(target) and not (target.is_dir() and not any(target.iterdir())):
        raise CallError(f"{str(target)!r} exists and is not a checkpoint folder; name a new folder, such as last.ckpt")
    tensors, described = _read(source)
    try:
        content: dict[str, Any] = _content(described, tensors)
        keys = {_key(name): tensor for name, tensor in tensors.items() if path_of(_key(name))[0] in PARTS}
    except (AttributeError, IndexError, KeyError, TypeError, ValueError):
        raise _foreign(source) from None
    (file,) = new_file_names(1)
    boxes: dict[str, Box] = {key: ((0,) * tensor.dim(), tuple(tensor.shape)) for key, tensor in keys.items()}
    stored = {key: StoredTensor(box[1], keys[key].dtype, {box: file}) for key, box in boxes.items()}
    try:
        target.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise WorkError(f"folder {str(target)!r} cannot be made: {error.strerror}") from None
    checksum = write_pieces({key: {box: keys[key]} for key, box in boxes.items()}, target / file)
    write_index(target, content, stored, {file: checksum})


def _name(key: str) -> str:
    """The name in the file of a tensor of a checkpoint: weights have their own."""
    part, *names = path_of(key)
    return names[0] if part == PARTS[0] else key


def _key(name: str) -> str:
    return name if len(path_of(name)) > 1 else key_of(PARTS[0], name)


def _described(value: Any, place: str, tensors: dict[str, Tensor], source: Path) -> Any:
    """A value as JSON has it. What JSON lacks is an object with one entry; tensors are put into ``tensors``."""
    if isinstance(value, Tensor):
        name = key_of(_INSIDE, place)
        tensors[name] = value
        return {"tensor": name}
    if isinstance(value, float) and not math.isfinite(value):
        return {"float": repr(value)}
    if value is None or type(value) in (bool, int, float, str):
        return value
    if type(value) is list or type(value) is tuple:
        items = [_described(each, f"{place}/{number}", tensors, source) for number, each in enumerate(value)]
        return items if type(value) is list else {"tuple": items}
    if isinstance(value, Mapping) and all(type(key) in (bool, int, str) for key in value):
        items = [[key, _described(each, f"{place}/{key}", tensors, source)] for key, each in value.items()]
        return dict(items) if not place else {"dict": items}
    raise CallError(f"checkpoint {str(source)!r} holds a {type(value).__name__} in {place}, which is not data")


def _content(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    """The inverse of :func:`_described`, below the object of all entries."""
    return {name: _value(each, tensors) for name, each in value.items()}


def _value(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(value, list):
        return [_value(each, tensors) for each in value]
    if not isinstance(value, dict):
        return value
    ((kind, inside),) = value.items()
    if kind == "tensor":
        return tensors[inside]
    if kind == "float":
        return float(inside)
    if kind == "tuple":
        return tuple(_value(each, tensors) for each in inside)
    if kind == "dict":
        return {key: _value(each, tensors) for key, each in inside}
    raise ValueError(kind)


def _apart(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same, with copies of those that share their memory with others, which the format has no way to say."""
    apart, seen = {}, set()
    for name, tensor in tensors.items():
        start = tensor.untyped_storage().data_ptr()
        is_alone = is_whole_storage(tensor) and start not in seen
        apart[name] = tensor if is_alone else tensor.clone().contiguous()
        seen.add(start)
    return apart


def _sum(tensor: Tensor) -> str:
    """Of a tensor's type, shape and bytes."""
    summed = xxh3_128(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
    summed.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return summed.hexdigest()


def _text(described: dict[str, Any]) -> str:
    return json.dumps({**described, "sum": xxh3_128(json.dumps(described).encode()).hexdigest()})


def _write(tensors: dict[str, Tensor], text: str, target: Path) -> None:
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    temporary = target.with_name(f"{target.name}.{os.getpid()}.tmp")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        remove_abandoned(target.parent, target.name)
        # one entry: several would be in another order each time
        save_file(tensors, temporary, {ENTRY: text})
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(target)
        sync_folder(target.parent)
    except (OSError, SafetensorError) as error:
        with suppress(OSError):
            temporary.unlink()
        reason = error.strerror if isinstance(error, OSError) else error
        raise WorkError(f"{str(target)!r} cannot be written: {reason}") from None


def _read(source: Path) -> tuple[dict[str, Tensor], Any]:
    """The tensors of a file in the order of the checkpoint, and its other content as JSON has it."""
    from safetensors import SafetensorError, safe_open

    if not source.is_file():
        raise CallError(f"{str(source)!r} does not exist, or is not a file")
    try:
        with safe_open(source, framework="pt") as file:
            text = (file.metadata() or {})[ENTRY]
            described = json.loads(text)
            del described["sum"]
            sums, content = described["sums"], described["content"]
            if _text(described) != text or set(sums) != set(file.keys()):
                raise CallError(f"{str(source)!r} is corrupt: the checksum of its description is wrong")
            tensors = {name: file.get_tensor(name) for name in sums}
    except (OSError, SafetensorError):
        raise CallError(f"{str(source)!r} cannot be read as a safetensors file: it is truncated or corrupt") from None
    except (KeyError, TypeError, ValueError, AttributeError):
        raise _foreign(source) from None
    for name, tensor in tensors.items():
        if _sum(tensor) != sums[name]:
            raise CallError(f"{str(source)!r} is corrupt: the checksum of {name} is wrong")
    return tensors, content


def _foreign(source: Path) -> CallError:
    return CallError(f"{str(source)!r} was not written by lightning-gpt convert --consolidate")
