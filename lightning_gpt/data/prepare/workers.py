"""Worker processes that tokenise the documents of all sources and write the parts.

The main process reads the sources in order and cuts them into tasks; a worker turns each task into a part. The cuts
depend on the documents alone, so the parts are the same for any number of workers.

Every worker imports this module, so it must not import Lightning or torch.
"""

import signal
import threading
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ALL_COMPLETED, FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import AbstractContextManager
from multiprocessing import active_children, get_context
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

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
    sources: Sequence[tuple[SourceBase, Split, Path, Limits]], writer: PartWriter, jobs: int, progress: Progress
) -> None:
    """Write the missing parts of all sources.

    Args:
        sources: Each source with its split, the folder for its parts and its limits.
        writer: Turns tasks into parts; every worker gets a copy.
        jobs: Number of worker processes.
        progress: Receives the parts as they are written.

    Raises:
        Stopped: After Ctrl-C, SIGTERM or SIGHUP, once the parts in progress are written; after a second Ctrl-C at once.
        WorkError: A worker died.
    """
    stop = threading.Event()

    def ask(signum: int, frame: FrameType | None) -> None:
        if stop.is_set() and signum == signal.SIGINT:
            for worker in active_children():
                worker.terminate()
            raise Stopped(_STOPPED)
        stop.set()

    before = on_stop(ask)
    with unheard_by_children():
        pool = ProcessPoolExecutor(jobs, get_context("spawn"), _start_worker, (writer,))
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
        pool.shutdown(cancel_futures=True)


class _Workers:
    """The pool of worker processes and the tasks that it is working on."""

    def __init__(self, pool: ProcessPoolExecutor, jobs: int, progress: Progress) -> None:
        self._pool, self._jobs, self.progress = pool, jobs, progress
        self._running: set[Future[PartFile]] = set()

    def submit(self, task: Task) -> Future[PartFile]:
        """Submit a task; waits while one is already queued, so that few texts are held in memory."""
        while len(self._running) > self._jobs:
            self.wait(FIRST_COMPLETED)
        with unheard_by_children():
            part = self._pool.submit(_write_part, task)
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
