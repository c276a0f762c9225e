"""The folder of a run: a new one, or that of a run which the launcher starts again."""

import atexit
import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path

from lightning_gpt.console import is_first_process
from lightning_gpt.errors import Stopped, WorkError
from lightning_gpt.launch import Launch
from lightning_gpt.whole_file import previous_of, write_file

LAUNCH_FILE = "launch.json"
"""What a run that a launcher may start again has written down of its launch."""


def reserve(runs: Path, launch: Launch | None) -> Path:
    """Make the folder of a new run in ``runs``; two runs that start at once get two.

    Args:
        runs: The folder of all runs of a name.
        launch: What may start the run again.
    """
    if not is_first_process():
        return runs / "version_0"  # the first process's folder is asked for, never this
    runs.mkdir(parents=True, exist_ok=True)
    for version in count():
        run = runs / f"version_{version}"
        try:
            run.mkdir()
        except FileExistsError:
            continue
        atexit.register(_remove_if_nothing_was_done, run)
        if launch is not None:
            write_file(run / LAUNCH_FILE, json.dumps(launch.record(ended=False)))
        return run
    raise AssertionError("there is always a next number")


def started_before(runs: Path, launch: Launch | None) -> Path | None:
    """The folder of the run that this launch continues; None if it begins one.

    A run without a checkpoint is begun anew. All processes have to find the same, and a folder without one may be that
    which the first process has made a moment ago.
    """
    if launch is None:
        return None
    found = [run for run in runs.glob("version_*") if newest_checkpoint(run) and launch.is_of(_launch_of(run))]
    return max(found, key=lambda run: int(run.name.rpartition("_")[2]), default=None)


def newest_checkpoint(run: Path) -> Path | None:
    """The checkpoint that a run continues from, whole or not; None if none was saved."""
    last = run / "checkpoints/last.ckpt"
    return last if last.exists() or previous_of(last).exists() else None


@contextmanager
def ending_noted(run: Path | None, launch: Launch | None) -> Iterator[None]:
    """Write down that a run has finished or was stopped on purpose, if it is so when the context ends.

    Args:
        run: Its folder; None if nothing is kept.
        launch: What may start it again.
    """
    try:
        yield
    except Stopped:
        _note_ending(run, launch)
        raise
    _note_ending(run, launch)


def _note_ending(run: Path | None, launch: Launch | None) -> None:
    if run is not None and launch is not None and is_first_process() and run.is_dir():
        with suppress(WorkError):  # all has been saved: a full disk does not undo that
            write_file(run / LAUNCH_FILE, json.dumps(launch.record(ended=True)))


def _launch_of(run: Path) -> dict[str, object]:
    with suppress(OSError, ValueError):
        record = json.loads((run / LAUNCH_FILE).read_text(encoding="utf-8"))
        if isinstance(record, dict) and run.name.rpartition("_")[2].isdecimal():
            return record
    return {}


def _remove_if_nothing_was_done(run: Path) -> None:
    """Remove the folder of a run that was refused before its first step, and so has no result."""
    settings = ("config.yaml", "hparams.yaml", "events.out.tfevents.*", "tokenizer/*", LAUNCH_FILE)
    with suppress(OSError):  # too many open files, or a folder that has gone: the run has said so
        files = [path.relative_to(run) for path in run.rglob("*") if path.is_file()]
        if all(any(file.match(pattern) for pattern in settings) for file in files):
            shutil.rmtree(run, ignore_errors=True)
