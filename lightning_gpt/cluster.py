"""A Ray cluster that takes tasks: connecting to it, retries, and its errors in one line.

Ray comes with the extra ``cluster`` and is imported when a cluster is asked for. The machines of the cluster must have
the same version of this package.
"""

import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from lightning_gpt.errors import CallError, WorkError

RETRIES = 3
"""How often a task is started again whose process or machine died."""

_SECONDS_TO_CONNECT = 5.0


class ClusterTask:
    """A task that was handed to the cluster.

    Args:
        reference: Ray's reference to its result.
    """

    def __init__(self, reference: Any) -> None:
        self._reference = reference

    def done(self) -> bool:
        """Whether it has ended."""
        import ray

        return bool(ray.wait([self._reference], timeout=0)[0])

    def result(self) -> Any:
        """What the task returned, once it has ended; its error is raised as it is.

        Raises:
            WorkError: Its process died, again and again, or it was cancelled.
        """
        import ray
        from ray.exceptions import RayError, RayTaskError

        try:
            return ray.get(self._reference)
        except RayTaskError as error:
            raise error.cause from None
        except RayError as error:
            raise WorkError(
                f"a task on the Ray cluster died ({type(error).__name__}; {RETRIES} retries); finished work is kept: "
                f"run the same command again to resume"
            ) from None

    def cancel(self, force: bool = False) -> None:
        """Interrupt it as Ctrl-C does; with ``force``, kill its process."""
        import ray

        ray.cancel(self._reference, force=force)


class Cluster:
    """A connection to a cluster; made by :func:`connected`."""

    @property
    def nodes(self) -> list[dict[str, float]]:
        """The resources of each machine that has cores to give."""
        import ray

        resources = [dict(node["Resources"]) for node in ray.nodes() if node["Alive"]]
        return [each for each in resources if each.get("CPU", 0) >= 1]

    @property
    def cores(self) -> int:
        """Cores of all machines."""
        return int(sum(node["CPU"] for node in self.nodes))

    def put(self, value: Any) -> Any:
        """A reference to a value that many tasks take; it is sent once to each machine."""
        import ray

        return ray.put(value)

    def submit(self, function: Callable[..., Any], *args: Any, cores: float = 1, gpus: float = 0) -> ClusterTask:
        """Hand a task to the cluster.

        Args:
            function: A function of a module of this package.
            args: Its arguments, or references to them.
            cores: Cores that it takes.
            gpus: GPUs that it takes.
        """
        import ray

        remote = ray.remote(num_cpus=cores, num_gpus=gpus, max_retries=RETRIES)(function)
        return ClusterTask(remote.remote(*args))


@contextmanager
def connected(address: str) -> Iterator[Cluster]:
    """A connection to the cluster at ``address``: ``HOST:PORT`` of its head, or ``auto`` for one on this machine.

    Raises:
        CallError: Ray is not installed, or no cluster answers.
    """
    try:
        import ray
    except ImportError:
        raise CallError("--ray needs the extra cluster: pip install -e '.[cluster]'") from None
    _require_answer(address)
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # tasks without GPUs see what the machine shows
    try:
        ray.init(address=address, log_to_driver=False, configure_logging=False)
    except Exception as error:  # Ray has no common class for them
        raise CallError(f"--ray {address}: {' '.join(str(error).split())[:200]}") from None
    try:
        cluster = Cluster()
        if not cluster.nodes:
            raise CallError(f"--ray {address}: the cluster has no cores to give")
        yield cluster
    finally:
        ray.shutdown()


def _require_answer(address: str) -> None:
    """Refuse an address where nothing listens; Ray would try for a minute."""
    if address == "auto":
        return
    host, colon, port = address.rpartition(":")
    if not colon or not host or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise CallError(f"--ray is {address!r}; it must be auto, or HOST:PORT of the head of a running Ray cluster")
    try:
        socket.create_connection((host, int(port)), _SECONDS_TO_CONNECT).close()
    except OSError as error:
        raise CallError(f"--ray {address}: no Ray cluster answers there ({error.strerror or error})") from None
