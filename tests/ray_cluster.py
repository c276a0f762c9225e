"""A Ray cluster on this machine: a head without cores, and machines that can be killed."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any


class LocalCluster:
    """Two machines of one core each, as processes of this one."""

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster

        quiet = {"include_dashboard": False, "object_store_memory": 100 * 2**20}
        self._cluster = patiently(lambda: Cluster(initialize_head=True, head_node_args={"num_cpus": 0, **quiet}))
        self.address = str(self._cluster.address)
        self.machines: list[Any] = []
        while len(self.machines) < 2:
            self.add()

    def add(self) -> None:
        """Add a machine."""
        self.machines.append(patiently(lambda: self._cluster.add_node(num_cpus=1, object_store_memory=100 * 2**20)))

    def kill_one(self) -> None:
        """SIGKILL to the process that stands for the last machine, its workers and what they have started."""
        (raylet,) = self.machines.pop().all_processes["raylet"]
        for process in [raylet.process.pid, *descendants(raylet.process.pid)]:
            with suppress(ProcessLookupError):  # a worker ends by itself without its machine
                os.kill(process, signal.SIGKILL)

    def shutdown(self) -> None:
        """End all processes."""
        self._cluster.shutdown()


def descendants(process: int) -> list[int]:
    """The processes that a process has started, and those that they have started."""
    children = [
        int(child) for file in Path(f"/proc/{process}/task").glob("*/children") for child in file.read_text().split()
    ]
    return [each for child in children for each in (child, *descendants(child))]


def patiently(start: Callable[[], Any]) -> Any:
    """What ``start`` returns; Ray gives its processes 30 seconds to start, which are too few on a busy machine."""
    for _ in range(4):
        with suppress(Exception):
            return start()
    return start()


@contextmanager
def local_cluster() -> Iterator[LocalCluster]:
    """A cluster for as long as the context lasts."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    cluster = LocalCluster()
    try:
        yield cluster
    finally:
        cluster.shutdown()


def wait_until(happened: Any, seconds: float = 240) -> None:
    """Wait until ``happened()`` is true."""
    end = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < end, f"nothing happened in {seconds} s"
        time.sleep(0.05)
