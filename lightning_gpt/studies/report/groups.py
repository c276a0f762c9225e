"""The results of one setting over its seeds."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lightning_gpt.studies.report.estimates import SeedSpread, spread
from lightning_gpt.studies.report.results import StudyResults
from lightning_gpt.studies.run.result import CellResult
from lightning_gpt.studies.spec.cells import VARIANT, is_number, setting_id, setting_text


@dataclass(frozen=True)
class Group:
    """The finished cells of one setting, one per seed.

    Args:
        settings: Its value on each axis.
        label: The same, for people.
        results: Its finished cells.
        planned: How many cells it has, finished or not.
    """

    settings: dict[str, Any]
    label: str
    results: list[CellResult]
    planned: int

    def spread(self, tag: str) -> SeedSpread | None:
        """The spread of a measure over the seeds."""
        return spread(result.value(tag) for result in self.results)

    def by_seed(self, tag: str) -> dict[int, float]:
        """A measure by seed, of the seeds that have it."""
        values = ((result.cell.seed, result.value(tag)) for result in self.results)
        return {seed: value for seed, value in values if value is not None}

    def layers(self, diagnostic: str, *, first: bool = False) -> dict[int, SeedSpread]:
        """A diagnostic over the seeds by the layer's number, as last (or first) measured; only layers that have it."""
        series = [values for result in self.results if (values := layer_values(result, diagnostic, first=first))]
        spreads = enumerate(map(spread, zip(*series, strict=False)))
        return {layer: each for layer, each in spreads if each is not None}


def layer_values(result: CellResult, diagnostic: str, *, first: bool = False) -> list[float | None]:
    """A run's diagnostic by layer, as last (or first) measured; empty where it was not measured. A layer that has no
    such figure has None."""
    entries = [entry[diagnostic] for entry in result.layers if entry.get(diagnostic)]
    return list(entries[0 if first else -1]) if entries else []


def groups(results: StudyResults) -> list[Group]:
    """All settings of a study, in order of variants and axes; numbers on an axis ascend, however they are listed."""
    found: dict[str, list[CellResult]] = {}
    for result in sorted(results.results, key=lambda each: _place(each, results)):
        found.setdefault(setting_id(result.cell.settings), []).append(result)
    made = []
    for members in found.values():
        settings = members[0].cell.settings
        finished = [result for result in members if result.status == "finished"]
        made.append(Group(settings, label_of(settings, results.study.axes), finished, len(members)))
    return made


def _place(result: CellResult, results: StudyResults) -> list[float]:
    """Where a setting stands on each axis."""
    study, place = results.study, []
    for key, value in result.cell.settings.items():
        listed = list(study.variants) if key == VARIANT else study.grid[key]
        numbers = all(map(is_number, listed))
        place.append(float(value) if numbers else listed.index(value))
    return place


def label_of(settings: dict[str, Any], axes: dict[str, str], leave_out: Sequence[str] = ()) -> str:
    """Settings for people: ``n_layer 4, dim 128``; a variant is shown by its name alone."""
    parts = [
        setting_text(value) if key == VARIANT else f"{axes[key]} {setting_text(value)}"
        for key, value in settings.items()
        if key not in leave_out
    ]
    return ", ".join(parts)
