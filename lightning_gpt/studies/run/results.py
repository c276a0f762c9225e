"""What the cells of a study gave: read from their runs, kept in a file each, and put together."""

import csv
import io
import json
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from lightning_gpt.studies.run.diagnostics import read_layers
from lightning_gpt.studies.run.environment import environment
from lightning_gpt.studies.spec.cells import Cell, setting_text
from lightning_gpt.studies.spec.measures import SCALAR
from lightning_gpt.studies.spec.study import Study
from lightning_gpt.whole_file import write_file

Status = Literal["finished", "failed", "unfinished", "missing"]

_MOST_POINTS = 400
_RESULT, _FAILURE = "result.json", "failure.json"


@dataclass(frozen=True)
class Result:
    """What is known of a cell.

    Args:
        cell: The cell.
        status: ``finished``; ``failed``; ``unfinished``, begun and not ended; ``missing``, not begun.
        values: The last value of every scalar, by tag; one that is not finite is left out, as JSON has none.
        curves: Every scalar that is not by layer, by tag, as pairs of step and value.
        layers: The depth diagnostics at each validation, by step: see :mod:`~lightning_gpt.studies.run.diagnostics`.
        environment: Where it was made.
        error: The last line of what a failed cell said.
    """

    cell: Cell
    status: Status
    values: dict[str, float] = field(default_factory=dict)
    curves: dict[str, list[tuple[int, float]]] = field(default_factory=dict)
    layers: list[dict[str, Any]] = field(default_factory=list)
    environment: dict[str, Any] = field(default_factory=dict)
    error: str = ""

    def value(self, tag: str) -> float | None:
        """The last value of a measure; None where the run has none."""
        return self.values.get(tag.removeprefix(SCALAR))

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
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
            "environment": self.environment,
            "config": cell.config,
        }


def run_folders(folder: Path) -> list[Path]:
    """The runs of a cell's folder, an attempt each, the first first."""
    runs = [path for path in folder.glob("version_*") if re.fullmatch(r"version_\d+", path.name)]
    return sorted(runs, key=lambda path: int(path.name.removeprefix("version_")))


def finish(cell: Cell, folder: Path, tested: dict[str, float]) -> Result:
    """Read what a cell's runs left and keep it in its ``result.json``, which says that the cell is done.

    Args:
        cell: The cell.
        folder: Its folder.
        tested: What ``lightning-gpt test`` said, by tag.
    """
    series: dict[str, dict[int, float]] = {}
    layers: dict[int, dict[str, Any]] = {}
    seconds = 0.0
    for run in run_folders(folder):
        seconds += _read_events(run, series)
        layers |= {entry["step"]: entry for entry in read_layers(run)}
    values = {tag: by_step[max(by_step)] for tag, by_step in series.items()} | tested | {"wall_seconds": seconds}
    result = Result(
        cell,
        "finished",
        {tag: value for tag, value in values.items() if math.isfinite(value)},
        {tag: _thinned(by_step) for tag, by_step in series.items() if not tag.startswith("depth/")},
        [layers[step] for step in sorted(layers)],
        environment(),
    )
    write_file(folder / _RESULT, json.dumps(result.to_json(), ensure_ascii=False))
    (folder / _FAILURE).unlink(missing_ok=True)
    return result


def _read_events(run: Path, series: dict[str, dict[int, float]]) -> float:
    """Add a run's scalars to ``series``; returns the seconds from its first event to its last."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # type: ignore[import-untyped]

    events = EventAccumulator(str(run), size_guidance={"scalars": 0, "images": 1, "tensors": 1, "histograms": 1})
    events.Reload()
    times = []
    for tag in events.Tags()["scalars"]:
        for event in events.Scalars(tag):
            series.setdefault(tag, {})[event.step] = event.value
            times.append(event.wall_time)
    return max(times) - events.FirstEventTimestamp() if times else 0.0


def _thinned(by_step: dict[int, float]) -> list[tuple[int, float]]:
    """At most so many points, evenly, the last among them; JSON has no infinity and no nan, so neither have these."""
    steps = sorted(step for step, value in by_step.items() if math.isfinite(value))
    stride = max(1, -(-len(steps) // _MOST_POINTS))
    return [(step, by_step[step]) for step in reversed(steps[::-1][::stride])]


def fail(folder: Path, error: str) -> None:
    """Keep why a cell failed."""
    write_file(folder / _FAILURE, json.dumps({"error": error}, ensure_ascii=False))


def read_result(cell: Cell, folder: Path) -> Result:
    """What is known of a cell, from its folder."""
    kept = _json(folder / _RESULT)
    if kept is not None and kept.get("digest") == cell.digest:
        curves = {tag: [(int(step), value) for step, value in points] for tag, points in kept["curves"].items()}
        return Result(cell, "finished", kept["values"], curves, kept["layers"], kept["environment"])
    failure = _json(folder / _FAILURE)
    if failure is not None:
        return Result(cell, "failed", error=str(failure.get("error", "")))
    return Result(cell, "unfinished" if run_folders(folder) else "missing")


def _json(path: Path) -> dict[str, Any] | None:
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content


@dataclass(frozen=True)
class StudyResults:
    """The results of all cells of a study, as far as there are any."""

    study: Study
    results: list[Result]

    @cached_property
    def finished(self) -> list[Result]:
        """Those of the cells that are done."""
        return [result for result in self.results if result.status == "finished"]

    def environments(self) -> list[dict[str, Any]]:
        """The different places where cells were made."""
        found: list[dict[str, Any]] = []
        for result in self.finished:
            if result.environment not in found:
                found.append(result.environment)
        return found

    def to_csv(self) -> str:
        """A row a cell: its settings, seed, status and measures; empty where there is no figure."""
        text = io.StringIO()
        table = csv.writer(text, lineterminator="\n")
        axes = self.study.axes
        table.writerow(["cell", *axes.values(), "seed", "status", *self.study.measure])
        for result in self.results:
            settings = [setting_text(result.cell.settings[key]) for key in axes]
            values = [result.value(tag) for tag in self.study.measure]
            row = ["" if value is None else repr(value) for value in values]
            table.writerow([result.cell.name, *settings, result.cell.seed, result.status, *row])
        return text.getvalue()

    def to_json(self) -> str:
        """All that is known, cell by cell, with each cell's whole configuration and where it was made."""
        study = self.study
        content = {
            "study": study.name,
            "preset": study.preset,
            "question": study.question,
            "measure": study.measure,
            "cells": [result.to_json() for result in self.results],
        }
        return json.dumps(content, ensure_ascii=False, indent=1)


def collect(study: Study, folder: Path) -> StudyResults:
    """The results of a study so far, from its folder."""
    return StudyResults(study, [read_result(cell, cell_folder(folder, cell)) for cell in study.cells])


def cell_folder(folder: Path, cell: Cell) -> Path:
    """Where a cell of the study in ``folder`` is kept."""
    return folder / "cells" / cell.folder


def write_results(results: StudyResults, folder: Path) -> Iterable[Path]:
    """Write ``results.csv`` and ``results.json``; returns their paths."""
    files = {folder / "results.csv": results.to_csv(), folder / "results.json": results.to_json()}
    for path, text in files.items():
        write_file(path, text)
    return files
