"""How far a running cell is, from the ``metrics.jsonl`` that its run writes."""

import json
from dataclasses import dataclass, replace
from pathlib import Path

from lightning_gpt.studies.run.result import run_folders
from lightning_gpt.training.metrics_jsonl import FILE_NAME, scalars_of


@dataclass(frozen=True)
class CellProgress:
    """How far a cell is.

    Args:
        step: Optimizer steps taken, as last logged.
        steps: How many it is to take; None while unknown.
        loss: The training loss last logged, in nats; None before the first.
    """

    step: int = 0
    steps: int | None = None
    loss: float | None = None

    @property
    def share(self) -> float:
        """The share of its steps that is done; 0 while the number of steps is unknown."""
        return self.step / self.steps if self.steps else 0.0


class RunFollower:
    """Finds the next run that starts in a cell's folder, and reads its metrics as they are logged.

    Args:
        folder: The cell's folder; the runs that are in it already are left out.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._earlier = set(run_folders(folder))
        self._read_bytes = 0
        self._progress = CellProgress()

    @property
    def run(self) -> Path | None:
        """The run's folder; None until the run has created it."""
        return next((run for run in run_folders(self._folder) if run not in self._earlier), None)

    def progress(self) -> CellProgress:
        """The progress so far; reads only the lines added since the last call."""
        run = self.run
        if run is not None:
            self._read(run / FILE_NAME)
        return self._progress

    def _read(self, file: Path) -> None:
        try:
            with file.open("rb") as stream:
                stream.seek(self._read_bytes)
                added = stream.read()
        except FileNotFoundError:  # nothing is logged yet
            return
        whole = added[: added.rfind(b"\n") + 1]
        self._read_bytes += len(whole)
        for line in map(json.loads, whole.splitlines()):
            loss = scalars_of(line).get("train/loss", self._progress.loss)
            self._progress = replace(self._progress, step=line["step"], steps=line["steps"], loss=loss)
