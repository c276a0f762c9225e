"""What a cell gave: read from its run, and kept in the cell's folder."""

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from lightning_gpt.json_text import to_json
from lightning_gpt.studies.run.environment import environment
from lightning_gpt.studies.run.layers import read_layers
from lightning_gpt.studies.spec.cells import Cell
from lightning_gpt.studies.spec.measures import SCALAR
from lightning_gpt.studies.spec.study import Study
from lightning_gpt.training.metrics_jsonl import FILE_NAME, read_metrics, scalars_of
from lightning_gpt.whole_file import write_file

Status = Literal["finished", "failed", "unfinished", "missing"]

TEST_FOLDER = "test"
"""The folder, inside the cell's, that ``lightning-gpt test`` writes its metrics to."""

_MOST_POINTS = 400
_RESULT, _FAILURE = "result.json", "failure.json"


@dataclass(frozen=True)
class CellResult:
    """What is known of a cell.

    Args:
        cell: The cell.
        status: ``finished``, ``failed``, ``unfinished`` (started but not ended) or ``missing`` (not started).
        values: The last value of every scalar, by tag; NaN and infinite ones are left out.
        curves: Every scalar that is not by layer, by tag, as pairs of step and value.
        layers: The layer diagnostics at each validation, by step: see :mod:`~lightning_gpt.studies.run.layers`.
        environment: The code, packages and machine that it was made with.
        error: The last line that a failed cell printed.
        neighbours: The most cells that ran on the machine at the same time; None where that is not known.
        alone: The measures that are those of a run of its own, with nothing beside it.
    """

    cell: Cell
    status: Status
    values: dict[str, float] = field(default_factory=dict)
    curves: dict[str, list[tuple[int, float]]] = field(default_factory=dict)
    layers: list[dict[str, Any]] = field(default_factory=list)
    environment: dict[str, Any] = field(default_factory=dict)
    error: str = ""
    neighbours: int | None = 0
    alone: tuple[str, ...] = ()

    def value(self, tag: str) -> float | None:
        """The last value of a measure; None where the run has none."""
        return self.values.get(tag.removeprefix(SCALAR))

    def to_json(self) -> dict[str, Any]:
        """The result as plain values."""
        cell = self.cell
        return {
            "cell": cell.name,
            "settings": cell.settings,
            "seed": cell.seed,
            "digest": cell.digest,
            "status": self.status,
            **({"error": self.error} if self.error else {}),
            "values": self.values,
            "layers": self.layers,
            "curves": self.curves,
            "neighbours": self.neighbours,
            "alone": list(self.alone),
            "environment": self.environment,
            "config": cell.config,
        }


def cell_folder(folder: Path, cell: Cell) -> Path:
    """The folder of a cell of the study in ``folder``."""
    return folder / "cells" / cell.folder


def run_folders(folder: Path) -> list[Path]:
    """The run folders in a cell's folder, one per attempt, oldest first."""
    runs = [path for path in folder.glob("version_*") if re.fullmatch(r"version_\d+", path.name)]
    return sorted(runs, key=lambda path: int(path.name.removeprefix("version_")))


def finish(cell: Cell, folder: Path, run: Path | None, neighbours: int | None = 0) -> CellResult:
    """Read what a cell's processes wrote, and keep it in ``result.json``, whose presence means that the cell is done.

    Args:
        cell: The cell.
        folder: Its folder.
        run: The folder of the run that ended, whose files also cover the runs that it resumed; None for a
            configuration that keeps no run.
        neighbours: The most cells that ran beside it; None where that is not known.
    """
    lines = [] if run is None else read_metrics(run / FILE_NAME)
    series: dict[str, dict[int, float]] = {}
    for line in lines:
        for tag, value in scalars_of(line).items():
            series.setdefault(tag, {})[line["step"]] = value
    values = {tag: by_step[max(by_step)] for tag, by_step in series.items()}
    for line in read_metrics(folder / TEST_FOLDER / FILE_NAME):
        values |= scalars_of(line)
    values["wall_seconds"] = lines[-1]["seconds"] if lines else 0.0
    result = CellResult(
        cell,
        "finished",
        {tag: value for tag, value in values.items() if math.isfinite(value)},
        {tag: _thinned(by_step) for tag, by_step in series.items() if not tag.startswith("layers/")},
        [] if run is None else read_layers(run),
        environment(),
        neighbours=neighbours,
    )
    write_file(folder / _RESULT, to_json(result.to_json()))
    (folder / _FAILURE).unlink(missing_ok=True)
    return result


def _thinned(by_step: dict[int, float]) -> list[tuple[int, float]]:
    """At most ``_MOST_POINTS`` evenly spaced points, including the last; NaN and infinite values are left out."""
    steps = sorted(step for step, value in by_step.items() if math.isfinite(value))
    stride = max(1, -(-len(steps) // _MOST_POINTS))
    return [(step, by_step[step]) for step in reversed(steps[::-1][::stride])]


def fail(folder: Path, error: str) -> None:
    """Keep the reason why a cell failed."""
    write_file(folder / _FAILURE, to_json({"error": error}))


def read_result(cell: Cell, folder: Path, measures: Sequence[str] = ()) -> CellResult:
    """What is known of a cell, from its folder; one that was trained before its study measured the test split, as
    ``measures`` now have it, is not finished."""
    kept = _json(folder / _RESULT)
    tests = [tag for tag in measures if tag.startswith("test/")]
    is_tested = not tests or (kept is not None and any(tag in kept["values"] for tag in tests))
    if kept is not None and kept.get("digest") == cell.digest and is_tested:
        curves = {tag: [(int(step), value) for step, value in points] for tag, points in kept["curves"].items()}
        known = (kept["values"], curves, kept["layers"], kept["environment"])
        return CellResult(cell, "finished", *known, neighbours=kept.get("neighbours"))
    failure = _json(folder / _FAILURE)
    if failure is not None:
        error = str(failure.get("error", ""))
        return CellResult(cell, "failed", error=error.replace(f"{folder}/", ""))  # a report is read elsewhere, too
    return CellResult(cell, "unfinished" if run_folders(folder) else "missing")


def read_results(study: Study, folder: Path) -> list[CellResult]:
    """What is known of each cell of the study in ``folder``, in order."""
    return [read_result(cell, cell_folder(folder, cell), study.measure) for cell in study.cells]


def _json(path: Path) -> dict[str, Any] | None:
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content
