"""Two processes, one of which hangs: ``python -m tests.training.hanging WHERE``, for :mod:`tests.training.test_launch`.

``stopped``: the first process, which has the store, is stopped by a signal in the middle of a training. ``start``: both
read their data for longer than the limit, and then the second goes on while the first waits for it.
"""

import os
import signal
import sys
import time
from pathlib import Path
from typing import Any, cast

import torch.distributed as dist

from lightning_gpt.training.callbacks import Heartbeat

LIMIT = 2.0
_LONG = 60.0


class _Trainer:
    """What a heartbeat asks of one."""

    world_size, global_step = 2, 4

    def __init__(self, rank: int) -> None:
        self.global_rank = rank


def _meet() -> int:
    """Become two processes of one group; returns the rank."""
    read, write = os.pipe()
    rank = 0 if os.fork() else 1
    if rank == 0:
        store = dist.TCPStore("127.0.0.1", 0, 2, is_master=True, wait_for_workers=False)  # type: ignore[attr-defined]
        os.write(write, str(store.port).encode())
    else:
        store = dist.TCPStore("127.0.0.1", int(os.read(read, 9)), 2, is_master=False)  # type: ignore[attr-defined]
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2)
    return rank


def _read_data(seconds: float) -> None:
    time.sleep(seconds)


def _stopped(rank: int, heartbeat: Heartbeat, trainer: Any) -> None:
    heartbeat.on_train_batch_start(trainer)
    told = Path("watched")
    if rank == 0:
        while not told.exists():
            time.sleep(0.1)
        os.kill(os.getpid(), signal.SIGSTOP)
    exit_at_once = os._exit

    def end_both(status: int) -> None:
        os.kill(os.getppid(), signal.SIGKILL)
        exit_at_once(status)

    cast(Any, os)._exit = end_both
    time.sleep(LIMIT / 2)
    heartbeat.on_train_batch_end(trainer)
    time.sleep(LIMIT / 4)
    told.touch()
    time.sleep(_LONG)


def _start(rank: int, heartbeat: Heartbeat, trainer: Any) -> None:
    _read_data(1.5 * LIMIT)
    if rank == 0:
        dist.barrier()
    _read_data(_LONG)


def main() -> None:
    """Run the script."""
    rank = _meet()
    heartbeat, trainer = Heartbeat(LIMIT, LIMIT), cast(Any, _Trainer(rank))
    heartbeat.setup(trainer, cast(Any, None), "fit")
    {"stopped": _stopped, "start": _start}[sys.argv[1]](rank, heartbeat, trainer)


if __name__ == "__main__":
    main()
