"""The DataLoader of batches that are made one at a time, in this process or in loader processes."""

from torch.utils.data import DataLoader

from lightning_gpt.data.batches import Batch, EvalRows, TrainBatches
from lightning_gpt.errors import CallError
from lightning_gpt.hardware import shared_memory_left
from lightning_gpt.stopping import leave_stops_to_parent

_BYTES_OF_A_NUMBER = 8
_PAGE = 4096


def load(batches: TrainBatches | EvalRows, num_workers: int, batch_tokens: int, pin_memory: bool) -> DataLoader[Batch]:
    """The loader.

    Args:
        batches: The batches.
        num_workers: Loader processes; 0 loads in this process.
        batch_tokens: Tokens per batch.
        pin_memory: Whether batches are copied to memory that a GPU reads directly.

    Raises:
        CallError: The batches of the loader processes do not fit into shared memory. They would wait for ever.
    """
    # training and validation at once; two batches ahead per worker and two in use; at most four tensors per batch, each
    # rounded up to whole pages
    needed = 2 * (2 * num_workers + 2) * 4 * (batch_tokens * _BYTES_OF_A_NUMBER + 2 * _PAGE)
    left = shared_memory_left()
    if num_workers and left is not None and left < needed:
        raise CallError(
            f"num_workers {num_workers} needs {needed / 2**20:.1f} MiB of shared memory, but /dev/shm has "
            f"{left / 2**20:.1f} MiB that can be written: use num_workers 0, or enlarge /dev/shm"
        )
    return DataLoader(
        batches,
        batch_size=None,
        num_workers=num_workers,
        pin_memory=pin_memory,
        worker_init_fn=leave_stops_to_parent,
    )
