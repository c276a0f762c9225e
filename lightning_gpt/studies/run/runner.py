"""Running the cells of a study, several at a time, until all are done or it is told to stop."""

import os
import signal
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from lightning_gpt.errors import CallError, Stopped, WorkError
from lightning_gpt.hardware import cores
from lightning_gpt.stopping import on_stop, restore
from lightning_gpt.studies.run.display import Display
from lightning_gpt.studies.run.environment import visible_gpus
from lightning_gpt.studies.run.locks import try_lock
from lightning_gpt.studies.run.process import CellProcess, lock_cell
from lightning_gpt.studies.run.result import cell_folder, read_result, read_results
from lightning_gpt.studies.run.starter import Starter
from lightning_gpt.studies.spec.cells import Cell
from lightning_gpt.studies.spec.study import Study

SECONDS_BETWEEN_LOOKS = 0.2
SECONDS_TO_SAVE = 120.0


@dataclass(frozen=True)
class Runner:
    """Runs the cells of a study in its folder: skips finished cells and resumes unfinished ones.

    Args:
        study: The study.
        folder: Its folder.
        jobs: Cells to run at a time.
        run_config: The configuration to run for a cell: its own, with the study's own files put in.
        starter: What starts the processes of cells.
        options: Added to the command line of each cell.
    """

    study: Study
    folder: Path
    jobs: int
    run_config: Callable[[Cell], dict[str, Any]]
    starter: Starter
    options: Sequence[str] = ()

    def run(self, display: Display) -> None:
        """Run all cells that are not finished.

        Raises:
            Stopped: On Ctrl-C, SIGTERM or SIGHUP, after the running cells have saved their state.
            WorkError: Another study runs in this folder.
        """
        with exclusive(self.folder), stop_flag() as stop:
            results = read_results(self.study, self.folder)
            display.begin(self.study.title, results)
            waiting = deque(result.cell for result in results if result.status != "finished")
            running: dict[int, CellProcess] = {}
            try:
                while (waiting or running) and not stop.asked:
                    self._start(waiting, running, display)
                    for process in running.values():
                        process.beside(len(running) - 1)
                    for slot, process in list(running.items()):
                        if process.poll():
                            del running[slot]
                            display.ended(read_result(process.cell, process.folder), process.seconds)
                    display.show(list(running.values()))
                    time.sleep(SECONDS_BETWEEN_LOOKS)
            finally:
                display.end()
                _stop(list(running.values()), stop)
        if stop.asked:
            done = sum(result.status == "finished" for result in read_results(self.study, self.folder))
            raise Stopped(
                f"stopped; {done} of {len(self.study.cells)} cells are done; rerun the same command to resume"
            )

    def run_one(self, cell: Cell, display: Display, waits: bool = False) -> None:
        """Run one cell, while other processes may run other cells in the same folder.

        Args:
            cell: The cell.
            display: Shows it.
            waits: Whether to wait for a process that is still saving the cell's state.

        Raises:
            WorkError: Another process is running the cell.
            Stopped: On Ctrl-C, SIGTERM or SIGHUP, after the cell has saved its state.
        """
        with shared(self.folder), stop_flag() as stop:
            result = read_result(cell, cell_folder(self.folder, cell), self.study.measure)
            if result.status == "finished":
                return
            lock, end = lock_cell(cell_folder(self.folder, cell)), time.monotonic() + SECONDS_TO_SAVE
            while lock is None and waits and not stop.asked and time.monotonic() < end:
                time.sleep(SECONDS_BETWEEN_LOOKS)
                lock = lock_cell(cell_folder(self.folder, cell))
            if lock is None:
                raise WorkError(f"another process is running cell {cell.number}, {cell.name}")
            process = self._process(cell, lock, 0, watched=False)  # other processes may run other cells here
            display.started(process)
            try:
                while not process.poll():
                    if stop.asked:
                        _stop([process], stop)
                        raise Stopped(f"stopped; rerun the same command to resume cell {cell.number}")
                    time.sleep(SECONDS_BETWEEN_LOOKS)
            except BaseException:
                process.signal(signal.SIGTERM)
                raise
            display.ended(read_result(cell, process.folder), process.seconds)

    def _start(self, waiting: deque[Cell], running: dict[int, CellProcess], display: Display) -> None:
        """Start cells in the free slots; a cell whose last process is still saving its state waits for it."""
        for slot in range(self.jobs):
            for _ in range(len(waiting) if slot not in running else 0):
                cell = waiting.popleft()
                lock = lock_cell(cell_folder(self.folder, cell))
                if lock is None:
                    waiting.append(cell)
                    continue
                running[slot] = self._process(cell, lock, slot)
                display.started(running[slot])
                break

    def _process(self, cell: Cell, lock: int, slot: int, *, watched: bool = True) -> CellProcess:
        tests = any(tag.startswith("test/") for tag in self.study.measure)
        environment, folder = share_of_machine(slot, self.jobs), cell_folder(self.folder, cell)
        config, starter = self.run_config(cell), self.starter
        return CellProcess(cell, folder, lock, config, environment, tests, starter, self.options, watched)


def share_of_machine(slot: int, jobs: int) -> dict[str, str]:
    """The environment variables that give one of ``jobs`` processes its share of the cores and GPUs.

    Each process gets an equal number of threads, and GPUs of its own where there are enough; otherwise several
    processes share a GPU. ``OMP_NUM_THREADS`` and ``CUDA_VISIBLE_DEVICES`` limit what there is to share.

    Raises:
        CallError: ``OMP_NUM_THREADS`` is not a number of threads.
    """
    threads = _threads()
    shared_out = {"OMP_NUM_THREADS": str(max(1, threads // jobs))}
    gpus = visible_gpus()
    if gpus:
        mine = gpus[slot::jobs] if len(gpus) >= jobs else [gpus[slot % len(gpus)]]
        shared_out["CUDA_VISIBLE_DEVICES"] = ",".join(mine)
    return shared_out


def _threads() -> int:
    """The number of threads to share out."""
    given = os.environ.get("OMP_NUM_THREADS", "")
    if not given:
        return cores()
    if not given.isdecimal() or int(given) < 1:
        raise CallError(f"OMP_NUM_THREADS is {given!r}; it must be a whole number of at least 1")
    return int(given)


@contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Inside the context, no other study and no single cell runs in ``folder``."""
    with _locked(folder, shared=False):
        yield


@contextmanager
def shared(folder: Path) -> Iterator[None]:
    """Inside the context, only single cells run in ``folder``."""
    with _locked(folder, shared=True):
        yield


@contextmanager
def _locked(folder: Path, *, shared: bool) -> Iterator[None]:
    try:
        lock = try_lock(folder / "lock", shared=shared)
    except OSError as error:
        raise WorkError(f"{folder} cannot be created: {error.strerror}") from None
    if lock is None:
        raise WorkError(f"another study is running in {folder}")
    try:
        yield
    finally:
        os.close(lock)


class Stop:
    """Whether the process was asked to stop, and whether by a second Ctrl-C."""

    asked = False
    at_once = False

    def ask(self, signum: int, frame: FrameType | None) -> None:
        self.at_once = self.at_once or (self.asked and signum == signal.SIGINT)
        self.asked = True


@contextmanager
def stop_flag() -> Iterator[Stop]:
    """Inside the context, being asked to stop raises nothing and is noted."""
    stop = Stop()
    before = on_stop(stop.ask)
    try:
        yield stop
    finally:
        restore(before)


def _stop(running: list[CellProcess], stop: Stop) -> None:
    """Let running cells save and stop; a second Ctrl-C, or a timeout, kills them."""
    end = time.monotonic() + SECONDS_TO_SAVE
    for process in running:
        process.signal(signal.SIGTERM)
    while any(process.alive for process in running):
        if stop.at_once or time.monotonic() > end:
            for process in running:
                process.signal(signal.SIGKILL)
        time.sleep(SECONDS_BETWEEN_LOOKS)
    for process in running:
        process.abandon()
