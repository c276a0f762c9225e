"""Where a checkpoint is: at a path, in the folder of a run or of a converted model, or in the series of a run."""

import os
from pathlib import Path

from lightning_gpt.checkpoint_series import path_of_step, series_of, steps_in
from lightning_gpt.errors import CallError

CONVERTED = "model.ckpt"
"""The checkpoint in the folder that ``convert`` makes of a published model."""
_MOST_STEPS = 12


def located(name: str | Path) -> Path:
    """The path of a checkpoint.

    Args:
        name: A path; ``RUN``, the folder of a run, for its ``last.ckpt``; the folder that ``convert`` made, for its
            ``model.ckpt``; or ``RUN@STEP`` for a step of a run's series.

    Raises:
        CallError: The run has no such step.
    """
    run, at, step = str(name).rpartition("@")
    if at and step.isdecimal() and not os.path.lexists(name):
        return located_step(Path(run), int(step))
    folder = Path(name)
    if os.path.isdir(folder / "checkpoints"):
        return folder / "checkpoints" / "last.ckpt"
    return folder / CONVERTED if os.path.isfile(folder / CONVERTED) else folder


def located_step(run: Path, step: int) -> Path:
    """The path of a step of a run's series.

    Raises:
        CallError: The run has no such step; names those that it has.
    """
    path = path_of_step(series_of(run), step)
    if os.path.lexists(path):
        return path
    steps = steps_in(series_of(run))
    if not steps:
        raise CallError(f"{str(run)!r} has no series of checkpoints; fit --checkpoints.series log keeps one")
    shown = [f"{each}" for each in steps]
    if len(shown) > _MOST_STEPS:
        shown = [*shown[: _MOST_STEPS // 2], "…", *shown[-_MOST_STEPS // 2 :]]
    raise CallError(f"step is {step}; the series of {str(run)!r} has the steps {', '.join(shown)}")


def run_of(checkpoint: Path) -> Path:
    """The folder of the run that a checkpoint lies in, if it lies in one."""
    folder = checkpoint.parent
    return folder.parent.parent if folder.name == "series" else folder.parent
