"""How the Trainer writes and reads checkpoints."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from lightning.fabric.plugins import CheckpointIO

from lightning_gpt.checkpoint_file import read_checkpoint, write_checkpoint


class CheckedFiles(CheckpointIO):
    """Writes each checkpoint atomically, with a checksum, and checks it on reading.

    Give it to the Trainer as a plugin: every save then goes through it, also those of ``ModelCheckpoint``.
    ``lightning-gpt fit`` does so. Strategies that save a folder of shards (FSDP, DeepSpeed) write it themselves.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Write a checkpoint.

        Args:
            checkpoint: Its content.
            path: The file.
            storage_options: Not supported.

        Raises:
            WorkError: If it cannot be written; an old file is kept as it was.
            TypeError: If storage options are given.
        """
        if storage_options is not None:
            raise TypeError("CheckedFiles has no storage options")
        write_checkpoint(checkpoint, Path(path))

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
        return read_checkpoint(Path(path), mmap=False)

    def remove_checkpoint(self, path: str | Path) -> None:
        """Remove a checkpoint file, if it exists."""
        Path(path).unlink(missing_ok=True)
