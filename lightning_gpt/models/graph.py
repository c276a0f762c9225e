"""Capturing work on a device as a CUDA graph: many kernels that are then launched at once, over the same memory."""

from collections.abc import Callable
from typing import TypeVar

import torch

T = TypeVar("T")

GRAPH_DEVICES = ("cuda",)
"""Devices with graphs."""
_PASSES_BEFORE = 3
_POOL_OF_ALL = (0, 0)  # torch's number of the pool of everything outside graphs


def capture(
    run: Callable[[], T], device: torch.device, undo: Callable[[], object] | None = None
) -> tuple[Callable[[], object], T]:
    """Capture what ``run`` does on ``device``.

    It is run three times first, which compiles what is to be compiled and sets up libraries. Random numbers are those
    of the device's generator at each replay, and the generator is left as it was.

    Args:
        run: The work. It reads and writes tensors that stay where they are, and never waits for the device.
        device: A device of :data:`GRAPH_DEVICES`.
        undo: Takes back what a run before the capture has changed.

    Returns:
        What replays the work, and the result of ``run``, whose tensors each replay overwrites.
    """
    seeds = torch.cuda.get_rng_state(device)
    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        for _ in range(_PASSES_BEFORE):
            run()
            if undo is not None:
                undo()
    torch.cuda.current_stream(device).wait_stream(stream)
    # half-precision copies of the weights that autocast keeps must be made in each replay
    torch.clear_autocast_cache()
    graph = torch.cuda.CUDAGraph()
    # other threads, such as the one that pins batches, may go on using the device
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        result = run()
    torch.clear_autocast_cache()
    torch.cuda.set_rng_state(seeds, device)
    return graph.replay, result


def held_by_graphs(device: torch.device) -> int:
    """Bytes of the graphs' pools that torch does not count as allocated: what a replay computes lives there."""
    return sum(
        segment["total_size"] - segment["allocated_size"]
        for segment in torch.cuda.memory_snapshot()  # type: ignore[no-untyped-call]
        if segment["segment_pool_id"] != _POOL_OF_ALL and segment["device"] == device.index
    )
