"""Studies and results without any training."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import yaml

from lightning_gpt.studies.report.results import StudyResults
from lightning_gpt.studies.run.result import CellResult, cell_folder
from lightning_gpt.studies.spec.cells import Cell
from lightning_gpt.studies.spec.study import Study
from lightning_gpt.studies.spec.study_file import read_study
from lightning_gpt.whole_file import write_file

LAYERS = "model.init_args.n_layer"


def content(**over: Any) -> dict[str, Any]:
    """A study of two depths and two seeds."""
    return {
        "name": "small",
        "question": "What does depth do?",
        "config": {"model": {"class_path": "GPTModule", "init_args": {"dim": 32, "block_size": 16}}},
        "grid": {LAYERS: [1, 2, 4]},
        "seeds": [0, 1],
        "measure": ["val/perplexity", "val/loss", "cost/step_seconds", "cost/parameters"],
        **over,
    }


def study(folder: Path, preset: str | None = None, **over: Any) -> Study:
    """The study of :func:`content`, through its file."""
    file = folder / "study.yaml"
    file.write_text(yaml.safe_dump(content(**over), sort_keys=False))
    return read_study(file, preset)


def values_of(cell: Cell) -> dict[str, float]:
    """Made-up figures: step time is 0.01 + 0.02 L exactly, perplexity falls with depth and differs by seed."""
    depth = int(cell.settings.get(LAYERS, 2))
    return {
        "val/perplexity": 40.0 - 4 * depth + cell.seed,
        "val/loss": 3.0 * (1000.0 * depth) ** -0.05,
        "cost/step_seconds": 0.01 + 0.02 * depth,
        "cost/parameters": 1000.0 * depth,
        "initial/loss": 5.5,
        "initial/uniform_loss": 5.5,
    }


def finished(cell: Cell, **over: Any) -> CellResult:
    """A finished cell with made-up figures, two curve points, and layers whose tokens grow alike."""
    depth = int(cell.settings.get(LAYERS, 2))
    cosines = [0.1 + 0.1 * layer for layer in range(depth + 1)]
    result = CellResult(
        cell,
        "finished",
        values_of(cell),
        {"val/loss": [(10, 3.0), (20, 2.0)]},
        [{"step": 0, "token_cosine": [0.0] * (depth + 1)}, {"step": 20, "token_cosine": cosines}],
        {"git": None, "python": "3", "packages": {}, "system": "Linux", "processor": "P", "cores": 2}
        | {"memory_gb": 8, "gpus": []},
    )
    return dataclasses.replace(result, **over)


def results(folder: Path, **over: Any) -> StudyResults:
    """All cells of the small study, finished."""
    made = study(folder, **over)
    return StudyResults(made, [finished(cell) for cell in made.cells])


def keep(result: CellResult, folder: Path) -> None:
    """Put a result where a study finds it."""
    place = cell_folder(folder, result.cell)
    write_file(place / "result.json", json.dumps(result.to_json()))
