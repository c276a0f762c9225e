"""Weights and optimizer state of a model that is spread over devices, under the names that one process gives them.

What is saved does not depend on the layout. Every tensor has the name and shape that it has in one process. A process
that holds a part of it holds a box: a shard of FSDP, the rows of one matrix out of a fused weight, or the part of such
a matrix that the tensor axis leaves to it. Saving writes boxes, loading reads the boxes that are needed, and so any
layout loads what any other has saved.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex, TensorProperties
from torch.distributed.checkpoint.planner import TensorWriteData, WriteItem, WriteItemType
from torch.distributed.checkpoint.state_dict_loader import load as load_distributed
from torch.distributed.checkpoint.state_dict_saver import save as save_distributed
from torch.distributed.tensor import DTensor
from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

from lightning_gpt.checkpoint_folder import Saved, StoredTensor, key_of, path_of, tensors_of
from lightning_gpt.errors import CallError, WorkError
from lightning_gpt.named_tensors import differences
from lightning_gpt.parallel.packed import Pieces
from lightning_gpt.parallel.storage import BoxLoadPlanner, BoxSavePlanner, FolderWriter, SavedReader


@dataclass(frozen=True)
class Origin:
    """Where a tensor of a laid-out model begins in the tensor that one process has.

    Args:
        name: The name of the latter.
        shape: Its shape.
        offsets: Along each of its dimensions.
    """

    name: str
    shape: tuple[int, ...]
    offsets: tuple[int, ...]


class Boxes:
    """What this process holds of one canonical tensor, as torch's distributed checkpoints ask for it.

    Args:
        shape: The whole shape.
        dtype: Of its elements.
    """

    def __init__(self, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        self.shape = torch.Size(shape)
        self.dtype = dtype
        self.boxes: dict[torch.Size, Tensor] = {}  # by their offsets
        self._same: list[tuple[torch.Size, Tensor]] = []  # what holds a box once more

    def add(self, tensor: Tensor, offsets: Iterable[int]) -> None:
        """Add a tensor of a model, of which this process holds a part if it is a DTensor, and where it begins."""
        local, inside = tensor.detach(), (0,) * tensor.dim()
        if isinstance(local, DTensor):
            _, inside = compute_local_shape_and_global_offset(tensor.shape, local.device_mesh, local.placements)
            local = local.to_local()
        if tensor.dim() and not self.shape:  # a scalar, kept as a vector
            local, inside = local.view(()) if local.numel() else local, ()
        if not local.numel():
            return
        box = torch.Size(a + b for a, b in zip(offsets, inside, strict=True))
        if box in self.boxes:
            self._same.append((box, local))
        else:
            self.boxes[box] = local

    def fill_copies(self) -> None:
        """After loading: give what holds a box once more, as each piece of a weight counts its steps, the same."""
        for box, local in self._same:
            local.copy_(self.boxes[box])

    def copied(self, copy_of: Callable[[Tensor], Tensor]) -> "Boxes":
        """A copy that later steps do not change; ``copy_of`` copies a tensor."""
        copy = Boxes(tuple(self.shape), self.dtype)
        for offsets, local in self.boxes.items():
            copy.boxes[offsets] = copy_of(local.contiguous())
        return copy

    def __create_write_items__(self, fqn: str, object: Any) -> list[WriteItem]:
        return [
            WriteItem(
                index=MetadataIndex(fqn, offsets),
                type=WriteItemType.SHARD,
                tensor_data=TensorWriteData(
                    chunk=ChunkStorageMetadata(offsets, local.shape),
                    properties=TensorProperties(dtype=self.dtype),
                    size=self.shape,
                ),
            )
            for offsets, local in self.boxes.items()
        ]

    def __create_chunk_list__(self) -> list[ChunkStorageMetadata]:
        return [ChunkStorageMetadata(offsets, local.shape) for offsets, local in self.boxes.items()]

    def __get_tensor_shard__(self, index: MetadataIndex) -> Tensor:
        assert index.offset is not None
        return self.boxes[index.offset]


def boxes_of(content: Mapping[str, Any], origins: Mapping[str, Origin]) -> dict[str, Boxes]:
    """What this process holds of a checkpoint's tensors, by their keys in one process.

    Args:
        content: The checkpoint as Lightning has put it together, under the names and with the tensors of this layout.
        origins: Where the tensors that have another name or shape in one process begin there.
    """
    found: dict[str, Boxes] = {}
    for key, tensor in tensors_of(content):
        part, name, *kind = path_of(key)
        origin = origins.get(name)
        if origin is None or (tensor.dim() == 0 and origin.shape):  # a count of steps, the same for all pieces
            origin = Origin(origin.name if origin else name, tuple(tensor.shape), (0,) * tensor.dim())
        key = key_of(part, origin.name, *kind)
        if key not in found:
            found[key] = Boxes(origin.shape, tensor.dtype)
        found[key].add(tensor, origin.offsets)
    return found


@contextmanager
def _in_a_line() -> Iterator[None]:
    """Raise the error of a process, which torch collects from all, as the error that it is."""
    try:
        yield
    except CheckpointException as collected:
        errors = [error for error, _ in collected.failures.values()]
        known = [error for error in errors if isinstance(error, CallError | WorkError)]
        raise (known or errors)[0] from None


def save(
    state: Mapping[str, Boxes], content: Mapping[str, Any], folder: Path, group: dist.ProcessGroup | None = None
) -> None:
    """Write a checkpoint folder; all processes must call it.

    Args:
        state: What this process holds.
        content: The checkpoint without its large tensors.
        folder: The folder.
        group: Processes that agree on the plan over the CPU, apart from the passes of a training that goes on.

    Raises:
        WorkError: A process cannot write its part; raised in all of them. The folder is as it was.
    """
    with _in_a_line():
        save_distributed(
            dict(state), storage_writer=FolderWriter(folder, content), planner=BoxSavePlanner(), process_group=group
        )


def load(saved: Saved, state: Mapping[str, Boxes], group: dist.ProcessGroup | None = None) -> None:
    """Read the boxes that this process holds, in place; all processes must call it.

    Args:
        saved: The checkpoint, a file or a folder that any layout has written.
        state: What this process holds; a process may lack what others hold.
        group: The processes; all if None.

    Raises:
        CallError: Tensors of the checkpoint are missing or have another shape, or one of its files is damaged; raised
            in all processes.
    """
    everything: dict[str, tuple[tuple[int, ...], torch.dtype]] = {}
    gathered: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(gathered, {key: (tuple(each.shape), each.dtype) for key, each in state.items()}, group)
    for of_process in gathered:
        everything |= of_process
    parts = {path_of(key)[0] for key in everything}
    check(saved, {key: shape for key, (shape, _) in everything.items()}, parts)
    # torch wants the same keys in all processes
    whole = {key: state.get(key) or Boxes(*each) for key, each in sorted(everything.items())}
    with _in_a_line():
        load_distributed(whole, storage_reader=SavedReader(saved), planner=BoxLoadPlanner(), process_group=group)
    for each in whole.values():
        each.fill_copies()


def check(saved: Saved, wanted: Mapping[str, tuple[int, ...]], parts: Iterable[str]) -> None:
    """Refuse a checkpoint whose tensors are not those of a model and its optimizer.

    Args:
        saved: The checkpoint.
        wanted: The shapes that are expected in ``parts`` of it, by key.
        parts: Parts of a checkpoint, such as ``state_dict``.

    Raises:
        CallError: A tensor is missing, not expected, or of another shape; all of them are named.
    """
    there = {key: each.shape for key, each in saved.tensors.items() if path_of(key)[0] in set(parts)}
    differing = differences(
        *({".".join(path_of(key)[1:]): shape for key, shape in shapes.items()} for shapes in (there, wanted))
    )
    if differing:
        raise CallError(f"checkpoint {str(saved.path)!r} has different tensors from this run: {differing}")


def materialise(optimizer: torch.optim.Optimizer, names: Mapping[Tensor, str], saved: Saved) -> None:
    """Give an optimizer that has taken no step the state that a checkpoint has, to be loaded into.

    Args:
        optimizer: The optimizer.
        names: The name in one process of each of its parameters.
        saved: The checkpoint.
    """
    kinds: dict[str, dict[str, StoredTensor]] = {}
    for key, stored in saved.tensors.items():
        part, *path = path_of(key)
        if part == "optimizer":
            kinds.setdefault(path[0], {})[path[1]] = stored
    for group in optimizer.param_groups:
        # as torch does on loading: the steps of these are counted on the device
        on_device = group.get("fused") or group.get("capturable")
        for parameter in group["params"]:
            for kind, stored in kinds.get(names[parameter], {}).items():
                if kind in optimizer.state[parameter]:
                    continue
                if kind == "step":
                    device = parameter.device if on_device else torch.device("cpu")
                    optimizer.state[parameter][kind] = torch.zeros((), dtype=stored.dtype, device=device)
                else:
                    optimizer.state[parameter][kind] = torch.zeros_like(parameter)


def origins_of(tensors: Mapping[str, Tensor], pieces: Pieces) -> dict[str, Origin]:
    """Where the pieces of fused parameters begin in what one process has.

    Args:
        tensors: What this process holds, by name.
        pieces: Which of them are pieces of fused parameters.
    """
    lengths: dict[str, int] = {}
    for piece in pieces.values():
        lengths[piece.fused] = max(lengths.get(piece.fused, 0), piece.start + piece.length)
    found = {}
    for name in tensors.keys() & pieces.keys():
        piece, shape = pieces[name], list(tensors[name].shape)
        if piece.dim is None:
            found[name] = Origin(piece.fused, (), ())
            continue
        dim = piece.dim % len(shape)
        shape[dim] = lengths[piece.fused]
        offsets = [piece.start if each == dim else 0 for each in range(len(shape))]
        found[name] = Origin(piece.fused, tuple(shape), tuple(offsets))
    return found
