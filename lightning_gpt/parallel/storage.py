"""Where torch's distributed checkpoints are stored: the folder of :mod:`~lightning_gpt.checkpoint_folder`.

``torch.distributed.checkpoint`` plans which process writes and reads which piece. Its own storage describes the pieces
with a pickle, which can run code when it is read; here they are described by data, and every file has a checksum.
"""

import dataclasses
import os
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner, DefaultSavePlanner
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import LoadPlan, LoadPlanner, SavePlan, SavePlanner, WriteItem
from torch.distributed.checkpoint.storage import StorageReader, StorageWriter, WriteResult
from torch.futures import Future

from lightning_gpt.checkpoint_folder import Box, Saved, StoredTensor, new_file_names, write_index, write_pieces


@dataclasses.dataclass(frozen=True)
class _Written:
    """A piece in a file."""

    box: Box
    file: str
    sum: str  # of the file


class FolderWriter(StorageWriter):
    """Writes one save into a folder.

    Args:
        folder: The folder.
        content: The checkpoint without its large tensors; that of the coordinating process is written.
    """

    def __init__(self, folder: Path, content: Mapping[str, Any]) -> None:
        self._folder = folder
        self._content = content

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        """Nothing to do: each save has a writer of its own."""

    def set_up_storage_writer(self, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        """Make the folder."""
        if is_coordinator:
            self._folder.mkdir(parents=True, exist_ok=True)

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        """The plan, as it is."""
        return plan

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        """Give each process the name of its file."""
        names = new_file_names(len(plans))
        return [dataclasses.replace(plan, storage_data=name) for plan, name in zip(plans, names, strict=True)]

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> "Future[list[WriteResult]]":
        """Write the pieces of this process."""
        pieces: dict[str, dict[Box, Tensor]] = defaultdict(dict)
        for item in plan.items:
            pieces[item.index.fqn][_box(item)] = cast(Tensor, planner.resolve_data(item)).detach().cpu()
        file = str(plan.storage_data)
        checksum = write_pieces(pieces, self._folder / file) if pieces else ""
        done: Future[list[WriteResult]] = Future()
        done.set_result([WriteResult(item.index, 0, _Written(_box(item), file, checksum)) for item in plan.items])
        return done

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        """Make the save the folder's."""
        files: dict[str, dict[Box, str]] = defaultdict(dict)
        sums = {}
        for result in (each for of_process in results for each in of_process):
            written = cast(_Written, result.storage_data)
            files[result.index.fqn][written.box] = written.file
            sums[written.file] = written.sum
        tensors = {
            key: StoredTensor(tuple(each.size), each.properties.dtype, files[key])
            for key, each in metadata.state_dict_metadata.items()
            if isinstance(each, TensorStorageMetadata)
        }
        write_index(self._folder, self._content, tensors, sums)

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        """False: torch does not choose this storage by itself."""
        return False


class BoxSavePlanner(DefaultSavePlanner):
    """Torch's planner, for a state that names boxes: :class:`~lightning_gpt.parallel.state.Boxes` by key."""

    def __init__(self) -> None:
        super().__init__(flatten_state_dict=False, flatten_sharded_tensors=False)

    def lookup_object(self, index: MetadataIndex) -> Any:
        """The box at an offset."""
        return self.state_dict[index.fqn].boxes[index.offset]


class BoxLoadPlanner(DefaultLoadPlanner):
    """The counterpart of :class:`BoxSavePlanner`."""

    def __init__(self) -> None:
        super().__init__(flatten_state_dict=False, flatten_sharded_tensors=False)

    def set_up_planner(
        self, state_dict: dict[str, Any], metadata: Metadata | None = None, is_coordinator: bool = False
    ) -> None:
        """Take the state as it is."""
        self.state_dict, self.metadata, self.is_coordinator = state_dict, metadata, is_coordinator

    def lookup_tensor(self, index: MetadataIndex) -> Tensor:
        """The box at an offset."""
        box: Tensor = self.state_dict[index.fqn].boxes[index.offset]
        return box


def _box(item: WriteItem) -> Box:
    assert item.tensor_data is not None
    chunk = item.tensor_data.chunk
    return tuple(chunk.offsets), tuple(chunk.sizes)


class SavedReader(StorageReader):
    """Reads pieces of a checkpoint, a file or a folder.

    Args:
        saved: The checkpoint.
    """

    def __init__(self, saved: Saved) -> None:
        self._saved = saved

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        """Nothing to do: each load has a reader of its own."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        """The tensors and their pieces."""
        return Metadata(
            {
                key: TensorStorageMetadata(
                    TensorProperties(dtype=stored.dtype),
                    torch.Size(stored.shape),
                    [ChunkStorageMetadata(torch.Size(offsets), torch.Size(sizes)) for offsets, sizes in stored.files],
                )
                for key, stored in self._saved.tensors.items()
            }
        )

    def set_up_storage_reader(self, metadata: Metadata, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:
        """Nothing to do."""

    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        """The plan, as it is."""
        return plan

    def prepare_global_plan(self, plans: list[LoadPlan]) -> list[LoadPlan]:
        """The plans, as they are."""
        return plans

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> "Future[None]":
        """Copy the pieces of this process into its tensors."""
        for item in plan.items:
            assert item.storage_index.offset is not None
            source = self._saved.piece(item.storage_index.fqn, item.storage_index.offset)
            for dim, (offset, length) in enumerate(zip(item.storage_offsets, item.lengths, strict=True)):
                source = source.narrow(dim, offset, length)
            target = planner.resolve_tensor(item)
            target.copy_(source)
            planner.commit_tensor(item, target)
        done: Future[None] = Future()
        done.set_result(None)
        return done

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        """False: torch does not choose this storage by itself."""
        return False
