"""The results of all cells of a study, and their files ``results.csv``, ``results.json`` and ``environment.json``."""

import csv
import io
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from lightning_gpt.json_text import to_json
from lightning_gpt.studies.run.result import CellResult, read_results
from lightning_gpt.studies.run.tuning import TunedChoice, costs_folder, tuned
from lightning_gpt.studies.spec.cells import setting_text, value_at
from lightning_gpt.studies.spec.measures import measure
from lightning_gpt.studies.spec.study import Study
from lightning_gpt.studies.spec.tune import TIMES
from lightning_gpt.whole_file import write_file


@dataclass(frozen=True)
class StudyResults:
    """The results of all cells of a study, finished or not, in the order of the cells.

    Args:
        study: The study.
        results: What each cell left.
        choices: What the study's first stage has chosen, by setting.
    """

    study: Study
    results: list[CellResult]
    choices: Mapping[str, TunedChoice] = field(default_factory=dict)

    @cached_property
    def finished(self) -> list[CellResult]:
        """The results of the finished cells."""
        return [result for result in self.results if result.status == "finished"]

    def mark(self, tag: str) -> str:
        """``†`` for a time that some of its cells measured while others ran beside them; empty elsewhere."""
        return " †" if self._shared(tag) else ""

    def mark_of(self, result: CellResult, tag: str) -> str:
        """The same for the figure of one cell."""
        return " †" if any(result is each for each in self._shared(tag)) else ""

    def _shared(self, tag: str) -> list[CellResult]:
        """The cells whose figure of a time is not, or may not be, that of a cell alone."""
        beside = [result for result in self.finished if result.neighbours != 0 and tag not in result.alone]
        return beside if measure(tag).is_time else []

    def warning(self, tag: str) -> str:
        """What :meth:`mark` means, as a sentence with a space before it; empty where there is no mark."""
        if not self.mark(tag):
            return ""
        counts = [result.neighbours for result in self._shared(tag)]
        known = [count for count in counts if count is not None]
        most = max(known, default=0)
        beside = (
            f"beside up to {most} other{'s' if most > 1 else ''}" if most else "where others may have run beside them"
        )
        return (
            f" † {len(counts)} of {len(self.finished)} cells ran {beside}: their times are not those of a cell alone."
        )

    def untested(self, tag: str) -> str:
        """Why nothing is concluded from a time: cells measured it beside others; empty where it may be."""
        count = len(self._shared(tag))
        if not count:
            return ""
        label = measure(tag).label
        return (
            f"{label[:1].upper()}{label[1:]} was measured while other cells ran or may have run ({count} of "
            f"{len(self.finished)} cells), so nothing is concluded from it."
        )

    def environments(self) -> list[dict[str, Any]]:
        """The distinct environments in which the finished cells ran."""
        found: list[dict[str, Any]] = []
        for result in self.finished:
            if result.environment not in found:
                found.append(result.environment)
        return found

    def to_csv(self) -> str:
        """One row per cell: settings, seed, status, the most cells that ran beside it, and measures.

        A field without a figure is empty; times that were measured alone are so, whatever ran beside the cell itself.
        """
        text = io.StringIO()
        table = csv.writer(text, lineterminator="\n")
        axes, tune = self.study.axes, self.study.tune
        tuned = [] if tune is None else [tune]
        table.writerow(
            ["cell", *axes.values(), *(each.name for each in tuned), "seed", "status", "beside", *self.study.measure]
        )
        for result in self.results:
            settings = [setting_text(result.cell.settings[key]) for key in axes]
            settings += [setting_text(value_at(result.cell.config, each.key)) for each in tuned]
            values = [result.value(tag) for tag in self.study.measure]
            row = ["" if value is None else repr(value) for value in values]
            beside = "" if result.neighbours is None or result.status != "finished" else result.neighbours
            table.writerow([result.cell.name, *settings, result.cell.seed, result.status, beside, *row])
        return text.getvalue()

    def to_json(self) -> str:
        """Everything known of each cell, including its whole configuration and the environment that it ran in."""
        study = self.study
        content = {
            "study": study.name,
            "preset": study.preset,
            "question": study.question,
            "measure": study.measure,
            "cells": [result.to_json() for result in self.results],
        }
        return to_json(content, indent=1)


def collect(study: Study, folder: Path) -> StudyResults:
    """The results so far of the study in ``folder``.

    Raises:
        WorkError: Its first stage is not done, or has found no value to choose.
    """
    found = {}
    if study.tune is not None:
        found = tuned(study, folder)
        study = study.with_choice({setting: choice.best for setting, choice in found.items()})
    results = read_results(study, folder)
    if study.alone is not None:
        measured = {each.cell.name: each for each in read_results(study.costs, costs_folder(folder))}
        results = _timed(results, measured)
    return StudyResults(study, results, found)


def _timed(results: list[CellResult], alone: Mapping[str, CellResult]) -> list[CellResult]:
    """The results with the times of each cell alone, by name; as they are until every finished cell has them."""
    finished = [alone[result.cell.name] for result in results if result.status == "finished"]
    if any(each.neighbours != 0 or not all(tag in each.values for tag in TIMES) for each in finished):
        return results
    done = []
    for result in results:
        times = {tag: alone[result.cell.name].values[tag] for tag in TIMES if result.status == "finished"}
        done.append(replace(result, values={**result.values, **times}, alone=tuple(times)))
    return done


def write_results(results: StudyResults, folder: Path) -> None:
    """Write ``results.csv``, ``results.json`` and ``environment.json``."""
    write_file(folder / "results.csv", results.to_csv())
    write_file(folder / "results.json", results.to_json())
    write_file(folder / "environment.json", to_json(results.environments(), indent=1))
