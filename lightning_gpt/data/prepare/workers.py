"""Workers that tokenise the documents of all sources: processes of this machine, or tasks on a Ray cluster.

The main process reads the sources in order and cuts them into tasks; a worker turns each task into a part. The cuts
depend on the documents alone, so the parts are the same for any number of workers. A task on a cluster sends its part
back, and the main process writes it, so that the machines need no common file system.

Every worker imports this module, so it must not import Lightning or torch.
"""

import signal
import threading
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ALL_COMPLETED, FIRST_COMPLETED, Future, ProcessPoolExecutor, ThreadPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager
from dataclasses import replace
from multiprocessing import active_children, get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from types import FrameType
from typing import Any, Protocol

from lightning_gpt.cluster import Cluster, ClusterTask
from lightning_gpt.data.prepare.parts import (
    Limits,
    PartFile,
    PartWriter,
    Quota,
    Task,
    complete_parts,
    parts_to_keep,
    remaining_tasks,
)
from lightning_gpt.data.sources.base import SourceBase
from lightning_gpt.data.split import Split
from lightning_gpt.errors import Stopped, WorkError
from lightning_gpt.stopping import end_with_parent, on_stop, restore, unheard_by_children
from lightning_gpt.whole_file import write_file

_STOPPED = "stopped; finished parts are kept: run the same command again to resume"


class Progress(AbstractContextManager[Any], Protocol):
    """Receives what was written. It is entered before the first source and left after the last."""

    def begin(self, name: str, done: Sequence[PartFile]) -> None:
        """Source ``name`` is next; an earlier run has already written the parts ``done``."""

    def advance(self, parts: Sequence[PartFile]) -> None:
        """These parts were written."""

    def dismiss(self, parts: Sequence[PartFile]) -> None:
        """These parts were written, but turned out to lie beyond the limits and were deleted."""


def write_parts(
    sources: Sequence[tuple[SourceBase, Split, Path, Limits]],
    writer: PartWriter,
    jobs: int,
    progress: Progress,
    on: Cluster | None = None,
) -> None:
    """Write the missing parts of all sources.

    Args:
        sources: Each source with its split, the folder for its parts and its limits.
        writer: Turns tasks into parts; every worker gets a copy.
        jobs: Number of worker processes, or of tasks at a time.
        progress: Receives the parts as they are written.
        on: The cluster to work on; processes of this machine when None.

    Raises:
        Stopped: After Ctrl-C, SIGTERM or SIGHUP, once the parts in progress are written; after a second Ctrl-C at once.
        WorkError: A worker died; on a cluster, again and again.
    """
    stop = threading.Event()

    def ask(signum: int, frame: FrameType | None) -> None:
        if stop.is_set() and signum == signal.SIGINT:
            pool.kill()
            raise Stopped(_STOPPED)
        stop.set()

    pool: _Pool = _Processes(writer, jobs) if on is None else _Tasks(writer, jobs, on)
    before = on_stop(ask)
    try:
        with progress:
            workers = _Workers(pool, jobs, progress)
            for source, split, folder, limits in sources:
                _write_source(source, split, folder, limits, workers, stop)
            workers.wait()
        if stop.is_set():
            raise Stopped(_STOPPED)
    except BrokenProcessPool:
        if stop.is_set():  # the workers were asked to stop too
            raise Stopped(_STOPPED) from None
        raise WorkError(
            "a worker process died (killed, or out of memory?); finished parts are kept: run the same command again "
            "to resume, perhaps with fewer jobs"
        ) from None
    finally:
        restore(before)
        pool.shutdown()


class _Pool(Protocol):
    """What turns tasks into parts."""

    def submit(self, task: Task) -> Future[PartFile]:
        """Begin a task."""

    def kill(self) -> None:
        """End the tasks in progress at once."""

    def shutdown(self) -> None:
        """Wait for the tasks in progress, and begin no other."""


class _Processes:
    """Processes of this machine."""

    def __init__(self, writer: PartWriter, jobs: int) -> None:
        with unheard_by_children():
            self._pool = ProcessPoolExecutor(jobs, get_context("spawn"), _start_worker, (writer,))

    def submit(self, task: Task) -> Future[PartFile]:
        with unheard_by_children():
            return self._pool.submit(_write_part, task)

    def kill(self) -> None:
        for worker in active_children():
            worker.terminate()

    def shutdown(self) -> None:
        self._pool.shutdown(cancel_futures=True)


class _Tasks:
    """Tasks on a cluster, each with a thread that waits for its part and writes it."""

    def __init__(self, writer: PartWriter, jobs: int, on: Cluster) -> None:
        self._threads = ThreadPoolExecutor(jobs)
        self._cluster, self._writer = on, on.put(writer)
        self._running: set[ClusterTask] = set()

    def submit(self, task: Task) -> Future[PartFile]:
        return self._threads.submit(self._write, task)

    def _write(self, task: Task) -> PartFile:
        running = self._cluster.submit(_part_in_memory, self._writer, replace(task, stem=Path(task.stem.name)))
        self._running.add(running)
        try:
            part, contents = running.result()
        finally:
            self._running.discard(running)
        for suffix, content in contents.items():
            write_file(task.stem.with_suffix(suffix), content)
        assert isinstance(part, PartFile)
        return part

    def kill(self) -> None:
        for task in list(self._running):
            task.cancel(force=True)

    def shutdown(self) -> None:
        self._threads.shutdown(cancel_futures=True)


def _part_in_memory(writer: PartWriter, task: Task) -> tuple[PartFile, dict[str, bytes]]:
    """The part of a task and the content of its files by suffix, in the order in which they are to be written."""
    with TemporaryDirectory() as folder:
        stem = Path(folder, task.stem)
        part = writer.write(replace(task, stem=stem))
        return part, {suffix: stem.with_suffix(suffix).read_bytes() for suffix in (".npz", ".arrow", ".json")}


class _Workers:
    """The pool of workers and the tasks that it is working on."""

    def __init__(self, pool: _Pool, jobs: int, progress: Progress) -> None:
        self._pool, self._jobs, self.progress = pool, jobs, progress
        self._running: set[Future[PartFile]] = set()

    def submit(self, task: Task) -> Future[PartFile]:
        """Submit a task; waits while one is already queued, so that few texts are held in memory."""
        while len(self._running) > self._jobs:
            self.wait(FIRST_COMPLETED)
        part = self._pool.submit(task)
        self._running.add(part)
        return part

    def wait(self, until: str = ALL_COMPLETED) -> None:
        """Wait until all submitted tasks are done, or the first of them."""
        finished, self._running = wait(self._running, return_when=until)
        self.progress.advance([part.result() for part in finished])


def _write_source(
    source: SourceBase, split: Split, folder: Path, limits: Limits, workers: _Workers, stop: threading.Event
) -> None:
    """Write the missing parts of a source, up to its limits."""
    done = parts_to_keep(complete_parts(folder), limits)
    _delete_all_but(done, folder)
    workers.progress.begin(source.name, done)
    quota, submitted = Quota(limits, done), deque[Future[PartFile]]()
    for task in () if quota.met else remaining_tasks(source, split, folder, done):
        while submitted and submitted[0].done():
            quota.add(submitted.popleft().result())
        if quota.met or stop.is_set():
            break
        submitted.append(workers.submit(task))
    if limits:
        # later parts were submitted before the earlier ones were known to meet the limits
        workers.wait()
        written = complete_parts(folder)
        kept = parts_to_keep(written, limits)
        _delete_all_but(kept, folder)
        workers.progress.dismiss(written[len(kept) :])


def _delete_all_but(parts: Sequence[PartFile], folder: Path) -> None:
    """Delete partially written files and every part that is not among ``parts``."""
    stems = {Path(part.file).stem for part in parts}
    for file in folder.glob("*"):
        if file.suffix == ".tmp" or file.stem not in stems:
            file.unlink()


_writer: PartWriter | None = None  # set in worker processes only


def _start_worker(writer: PartWriter) -> None:
    """Set up a worker process: keep the writer, and end with the main process."""
    global _writer
    _writer = writer
    end_with_parent()


def _write_part(task: Task) -> PartFile:
    assert _writer is not None
    return _writer.write(task)
