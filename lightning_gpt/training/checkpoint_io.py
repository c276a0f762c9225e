"""How the Trainer writes and reads checkpoints."""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
from lightning.fabric.plugins import CheckpointIO

from lightning_gpt.checkpoint_file import write_checkpoint
from lightning_gpt.checkpoint_folder import read_saved
from lightning_gpt.errors import WorkError
from lightning_gpt.parallel.strategy import MeshStrategy
from lightning_gpt.saving import BackgroundSaves, first_non_finite
from lightning_gpt.whole_file import make_room, previous_of, remove


class CheckedFiles(CheckpointIO):
    """Writes each checkpoint atomically, with a checksum, and checks it on reading.

    Give it to the Trainer as a plugin: every save then goes through it, also those of ``ModelCheckpoint``.
    ``lightning-gpt fit`` does so. Strategies that save a folder of shards (FSDP, DeepSpeed) write it themselves.

    Args:
        background: Whether a save is written by a thread, from a copy, while the training goes on. The next save, and
            the end of the training, wait for it and raise what it failed with.
    """

    def __init__(self, background: bool = False) -> None:
        self.saves = BackgroundSaves(background)

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write a checkpoint.

        Args:
            checkpoint: Its content.
            path: The file.
            storage_options: Not supported.

        Raises:
            WorkError: If it cannot be written, or a weight in it is not finite; an old file is kept as it was.
            TypeError: If storage options are given.
        """
        if storage_options is not None:
            raise TypeError("CheckedFiles has no storage options")
        for key in ("state_dict", "current_model_state"):
            name = first_non_finite(checkpoint.get(key, {}))
            if name is not None:
                raise WorkError(
                    f"the weights of step {checkpoint.get('global_step')} are not finite ({name}): they are not saved "
                    f"in {path}"
                )
        self.saves.write(partial(_write_file, Path(path)), checkpoint)

    def teardown(self) -> None:
        """Wait for the last save."""
        self.saves.wait()

    def load_checkpoint(
        self, path: str | Path, map_location: Callable[..., Any] | None = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read a checkpoint into memory, on the CPU; the strategy moves it to its device.

        Args:
            path: The file.
            map_location: Ignored; tensors are on the CPU.
            weights_only: Ignored; no code is ever run.

        Raises:
            CallError: If the file is missing, truncated, corrupt or not a checkpoint.
        """
        # a mapped file would keep its space on the disk as long as the optimizer's state refers to it
        return read_saved(path, mmap=False)

    def remove_checkpoint(self, path: str | Path) -> None:
        """Remove a checkpoint, if it exists."""
        remove(Path(path))


def _savers(trainer: L.Trainer) -> Iterator[BackgroundSaves]:
    for writer in (trainer.strategy, trainer.strategy.checkpoint_io):
        if isinstance(writer, MeshStrategy | CheckedFiles):
            yield writer.saves


def wait_for_saves(trainer: L.Trainer) -> None:
    """Wait for a save that is being written, and raise what it failed with."""
    for saves in _savers(trainer):
        saves.wait()


def nothing_is_being_saved(trainer: L.Trainer) -> bool:
    """Whether :func:`wait_for_saves` would not have to wait."""
    return all(saves.is_idle for saves in _savers(trainer))


def _write_file(path: Path, content: dict[str, Any]) -> None:
    if path.is_dir():  # another layout has saved a folder here; what was kept of it stays as the one before
        path.replace(make_room(previous_of(path)))
    write_checkpoint(content, path)
