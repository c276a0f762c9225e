"""The cells of a study as tasks on a Ray cluster. The machines share the study's folder and the working folder."""

import io
import os
import time
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from lightning_gpt.cluster import Cluster, ClusterTask
from lightning_gpt.errors import Stopped, WorkError
from lightning_gpt.studies.run.display import Display
from lightning_gpt.studies.run.result import cell_folder, read_result, read_results
from lightning_gpt.studies.run.runner import SECONDS_BETWEEN_LOOKS, SECONDS_TO_SAVE, Runner, Stop, shared, stop_flag
from lightning_gpt.studies.spec.cells import Cell


def run_on_cluster(runner: Runner, on: Cluster, display: Display) -> None:
    """Run all cells that are not finished; a cell whose process or machine dies is resumed elsewhere.

    Each cell takes the cores and GPUs of a machine divided by ``runner.jobs``; the smallest machine decides.

    Raises:
        Stopped: On Ctrl-C, SIGTERM or SIGHUP, after the running cells have saved their state.
        WorkError: Another study runs in the folder, a machine does not have it, or a cell's process died too often.
    """
    cores = max(1, min(node["CPU"] for node in on.nodes) // runner.jobs)
    gpus = min(node.get("GPU", 0) for node in on.nodes) / runner.jobs
    there = replace(runner, folder=runner.folder.resolve(), jobs=1)
    errors = []
    with shared(runner.folder), stop_flag() as stop:
        results = read_results(runner.study, runner.folder)
        display.begin(runner.study.title, results)
        running: list[tuple[Cell, ClusterTask]] = []
        for cell in (result.cell for result in results if result.status != "finished"):
            running.append((cell, on.submit(_run_cell, there, cell, Path.cwd(), cores=cores, gpus=gpus)))
        try:
            while running and not stop.asked:
                ended = [each for each in running if each[1].done()]
                running = [each for each in running if each not in ended]
                for cell, task in ended:
                    try:
                        seconds = task.result()
                    except WorkError as error:
                        errors.append(f"cell {cell.number}, {cell.name}: {error}")
                        display.say(errors[-1])
                    else:
                        display.ended(read_result(cell, cell_folder(runner.folder, cell)), seconds)
                time.sleep(SECONDS_BETWEEN_LOOKS)
        finally:
            display.end()
            _cancel([task for _, task in running], stop)
    if stop.asked:
        done = sum(result.status == "finished" for result in read_results(runner.study, runner.folder))
        raise Stopped(f"stopped; {done} of {len(runner.study.cells)} cells are done; rerun the same command to resume")
    if errors:
        raise WorkError(errors[0] + (f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""))


def _cancel(running: list[ClusterTask], stop: Stop) -> None:
    """Let running cells save and stop; a second Ctrl-C, or a timeout, kills them."""
    end = time.monotonic() + SECONDS_TO_SAVE
    for task in running:
        task.cancel()
    while not all(task.done() for task in running):
        if stop.at_once or time.monotonic() > end:
            for task in running:
                task.cancel(force=True)
            return
        time.sleep(SECONDS_BETWEEN_LOOKS)


def _run_cell(runner: Runner, cell: Cell, working_folder: Path) -> float:
    """Run a cell to its end on a machine of the cluster; returns the seconds that it took."""
    start = time.monotonic()
    if not (runner.folder / "lock").exists():
        raise WorkError(f"{runner.folder} is not shared by the machines of the cluster: choose another --folder")
    try:
        os.chdir(working_folder)
        runner.run_one(cell, Display([], {}, Console(file=io.StringIO())), waits=True)
    except OSError as error:
        raise WorkError(f"{error.filename or working_folder}: {error.strerror}") from None
    except Stopped as stopped:
        raise WorkError(str(stopped)) from None
    return time.monotonic() - start
