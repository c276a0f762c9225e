"""Cases that run in real processes over gloo: one launch runs all cases of a module, and every test reads its own.

``python -m tests.parallel.world MODULE PROCESSES FILE`` forks the processes, runs ``MODULE.CASES[PROCESSES]`` in each,
and writes what the first one returned, by name, as JSON. A case that raises ends the launch; later ones are missing.
"""

import functools
import importlib
import json
import os
import sys
import tempfile
import traceback
from collections.abc import Callable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from tests.processes import run_forked

Cases = Mapping[int, Mapping[str, Callable[[], Any]]]
"""Cases by number of processes and name; each returns what can be written as JSON."""


@functools.cache
def results(module: str, processes: int) -> dict[str, Any]:
    """What the cases of ``module`` for that many processes returned; under ``error``, what went wrong."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "results"
        done = run_forked("tests.parallel.world", module, str(processes), str(file), cwd=Path(__file__).parents[2])
        found = json.loads(file.read_text()) if file.exists() else {}
    return found if done.returncode == 0 else {**found, "error": done.stdout + done.stderr}


def result(module: str, processes: int, case: str) -> Any:
    """What one case returned."""
    found = results(module, processes)
    assert case in found, found.get("error", f"there is no case {case}")
    return found[case]


def _run(rank: int, size: int, module: str, folder: str, file: Path) -> None:
    torch.set_num_threads(1)
    store = dist.FileStore(f"{folder}/store", size)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=size, timeout=timedelta(seconds=60))
    found = {}
    for name, case in importlib.import_module(module).CASES[size].items():
        found[name] = case()
        dist.barrier()
        if rank == 0:
            file.write_text(json.dumps(found))
    dist.destroy_process_group()


def _launch(module: str, size: int, file: Path) -> int:
    with tempfile.TemporaryDirectory() as folder:
        children = []
        for rank in range(size):
            child = os.fork()
            if child == 0:
                try:
                    _run(rank, size, module, folder, file)
                except BaseException:
                    sys.stderr.write(f"process {rank}: {traceback.format_exc()}\n")
                    sys.stderr.flush()
                    os._exit(1)
                os._exit(0)
            children.append(child)
        failed = 0
        while children:
            child, status = os.wait()
            children.remove(child)
            if status and not failed:
                failed = 1
                for other in children:
                    os.kill(other, 9)
        return failed


if __name__ == "__main__":
    importlib.import_module(sys.argv[1])
    sys.exit(_launch(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])))
