"""What an axis buys in each setting of the other axes, and where it buys more or less than beside one of them."""

from dataclasses import dataclass, replace
from functools import partial

from lightning_gpt.errors import CallError
from lightning_gpt.studies.report import plots
from lightning_gpt.studies.report.chart import new_dot_rows
from lightning_gpt.studies.report.comparisons import Comparison, compare, compare_with, gains
from lightning_gpt.studies.report.document import Block, Findings, Heading, Picture, Table, Tested, Written
from lightning_gpt.studies.report.estimates import LEVEL, SeedSpread
from lightning_gpt.studies.report.groups import Group, groups, label_of
from lightning_gpt.studies.report.results import StudyResults
from lightning_gpt.studies.report.sections.base import Section, capital, file_name, numeric_axis
from lightning_gpt.studies.report.sections.differences import (
    ONE_SEED,
    change_text,
    difference_table,
    findable_text,
    shown,
)
from lightning_gpt.studies.spec.measures import Measure, measure, number_text
from lightning_gpt.studies.spec.study import Study

_ALL = "all"
"""The name of the one setting of a study that has no other axis."""


@dataclass(frozen=True)
class _Ends:
    """One setting of the other axes at both ends of the axis."""

    first: Group
    last: Group

    def gains(self, tag: str) -> dict[int, float]:
        """By how much the measure falls from the first end to the last, by seed, of the seeds that both have."""
        return gains(self.first.by_seed(tag), self.last.by_seed(tag))

    def spread(self, tag: str) -> SeedSpread:
        """The gain over the seeds."""
        return SeedSpread(tuple(self.gains(tag).values()))


@dataclass(frozen=True)
class Gain(Section):
    """By how much a measure falls along an axis, seed by seed, with one row for each setting of the other axes.

    The gain is the measure at the axis's smallest value minus that at its largest. Tested are whether it is 0 in each
    setting, and whether it is that of ``beside`` in each of the others: a difference of differences, made for each seed
    before the seeds are compared.

    Args:
        x: The axis, by its short name or its key.
        y: The measure.
        beside: The setting of the other axes whose gain those of the others are tested against, by its name in the
            report; none when empty.
    """

    x: str
    y: str
    beside: str = ""

    def check(self, study: Study) -> None:
        measure(self.y)
        axis = numeric_axis(study, self.x, "gain")
        if len(study.grid[axis]) < 2:
            raise CallError(f"report: gain: {self.x!r} has one value only; a gain is between two")
        labels = list(dict.fromkeys(label_of(cell.settings, study.axes, [axis]) for cell in study.cells))
        if self.beside and self.beside not in labels:
            raise CallError(
                f"report: gain: beside is {self.beside!r}; it must be one of the settings {'; '.join(labels)}"
            )

    def blocks(self, results: StudyResults) -> list[Block]:
        axis = numeric_axis(results.study, self.x, "gain")
        first, last = min(results.study.grid[axis]), max(results.study.grid[axis])
        found = self._ends(results, axis, first, last)
        if not found:
            return []
        what = measure(self.y)
        gain = replace(what, label=f"gain in {what.label}")
        between = self._between(first, last)
        spreads = {name: ends.spread(self.y).scaled(what.scale) for name, ends in found.items()}
        chart, ax = new_dot_rows(list(spreads))
        plots.draw_rows(chart, ax, {name: each.values for name, each in spreads.items()}, means=True)
        plots.readable_axis(ax.xaxis)
        ax.axvline(0.0, color="#1a1a1a", linewidth=0.8, zorder=1)
        caption = f"By how much {what.label} falls {between}: one dot per seed; bar: mean. Solid: no gain."
        if self.beside in spreads:
            ax.axvline(spreads[self.beside].mean, color="#888888", linewidth=1, linestyle="--", zorder=0)
            caption += f" Dashed: the mean of {self.beside}."
        ax.set_xlabel(gain.title + results.mark(self.y))
        why_not = results.untested(self.y)
        own = {name: compare(ends.first.by_seed(self.y), ends.last.by_seed(self.y)) for name, ends in found.items()}
        alone = {} if why_not else {name: each for name, each in own.items() if each is not None}
        beside = {} if why_not else self._beside(found)
        return [
            Heading(f"Gain in {what.label} {between}"),
            Tested(
                [each.p for each in (*alone.values(), *beside.values())],
                partial(self._written, found, gain, (first, last), alone, beside, why_not or ONE_SEED),
            ),
            Picture(file_name("gain", self.y, self.x), chart, caption + results.warning(self.y)),
        ]

    def _between(self, first: float, last: float) -> str:
        return f"from {self.x} {number_text(first)} to {number_text(last)}"

    def _ends(self, results: StudyResults, axis: str, first: float, last: float) -> dict[str, _Ends]:
        """The settings of the other axes that have the measure at both ends with the same seed, by their names."""
        lines: dict[str, dict[float, Group]] = {}
        for group in groups(results):
            label = label_of(group.settings, results.study.axes, [axis])
            lines.setdefault(label or _ALL, {})[group.settings[axis]] = group
        both = {label: _Ends(line[first], line[last]) for label, line in lines.items() if {first, last} <= line.keys()}
        return {label: ends for label, ends in both.items() if ends.gains(self.y)}

    def _beside(self, found: dict[str, _Ends]) -> dict[str, Comparison]:
        """Each setting's gain against that of ``beside``, by its name; those that cannot be tested are left out."""
        if self.beside not in found:
            return {}
        return compare_with(self.beside, {name: ends.gains(self.y) for name, ends in found.items()})

    def _written(
        self,
        found: dict[str, _Ends],
        gain: Measure,
        ends_of_axis: tuple[float, float],
        alone: dict[str, Comparison],
        beside: dict[str, Comparison],
        why_not: str,
        corrected: list[float],
        count: int,
    ) -> list[Written]:
        of_each, of_others = corrected[: len(alone)], corrected[len(alone) :]
        between = self._between(*ends_of_axis)
        table = self._table(found, gain, ends_of_axis, dict(zip(alone, of_each, strict=True)), count)
        if not alone:
            return [Findings([f"{capital(gain.label)} {between}: {why_not}"]), table]
        own = self._own(between, alone, of_each)
        if not beside:
            return [Findings([own], own), table]
        compared = self._compared(gain, beside, of_others)
        least = findable_text(gain, list(beside.values()), count)
        caption = f"The gain of each setting minus that of {self.beside}."
        differences = difference_table(gain, beside, of_others, count, "setting", caption)
        return [Findings([f"{compared} {least}".strip(), own], f"{compared} {own}"), table, differences]

    def _own(self, between: str, alone: dict[str, Comparison], corrected: list[float]) -> str:
        """In which settings the measure falls and in which it rises, as far as it is shown."""
        label, (falls, rises) = capital(measure(self.y).label), _sides(alone, corrected)
        ways = [("falls", falls), ("rises", rises)]
        if [*alone] == [_ALL]:
            return f"{label} {'falls' if falls else 'rises' if rises else 'is not shown to change'} {between}."
        parts = [f"{way} {between} with {'; '.join(names)}" for way, names in ways if names]
        left = len(alone) - len(falls) - len(rises)
        if not parts:
            return f"{label} is not shown to change {between} in any of {len(alone)} settings."
        rest = f"; and is not shown to change in {left} of {len(alone)} settings" if left else ""
        return f"{label} {' and '.join(parts)}{rest}."

    def _compared(self, gain: Measure, beside: dict[str, Comparison], corrected: list[float]) -> str:
        """Which settings gain less and which more than ``beside``, as far as it is shown."""
        larger, smaller = _sides(beside, corrected)
        p_of, parts = dict(zip(beside, corrected, strict=True)), []
        for way, names in (("smaller", smaller), ("larger", larger)):
            each = [f"{name} ({change_text(gain, beside[name], p_of[name])})" for name in names]
            parts += [f"{way} with {'; '.join(each)}"] if each else []
        left = len(beside) - len(larger) - len(smaller)
        if not parts:
            return f"In none of {left} settings is the {gain.label} shown to differ from that of {self.beside}."
        rest = f"; and in {left} of {len(beside)} settings it is not shown to differ" if left else ""
        return f"Compared with {self.beside}, the {gain.label} is {' and '.join(parts)}{rest}."

    def _table(
        self,
        found: dict[str, _Ends],
        gain: Measure,
        ends_of_axis: tuple[float, float],
        p_of: dict[str, float],
        count: int,
    ) -> Table:
        """One row per setting: the measure at both ends, and the gain with its interval and test."""
        what, plain, rows = measure(self.y), replace(gain, unit=""), []
        for name, ends in found.items():
            sides = (ends.first.spread(self.y), ends.last.spread(self.y))
            fall = ends.spread(self.y)
            row = [name, *("–" if each is None else plain.text(each.mean, each.half_width) for each in sides)]
            row += [plain.change_text(fall.mean, fall.half_width or 0.0), str(fall.n)]
            verdict = "not shown" if not shown(p_of.get(name, 1.0)) else "falls" if fall.mean > 0 else "rises"
            rows.append([*row, f"{p_of[name]:.2g}" if name in p_of else "–", verdict])
        unit = f" ({what.unit})" if what.unit else ""
        note = (
            f"The gain is by how much {what.label} falls {self._between(*ends_of_axis)}, seed by seed. p corrected: "
            f"Student's t test of whether it is 0, by Holm's method over the {count} "
            f"{'test' if count == 1 else 'tests'} of this report."
        )
        at_ends = (f"{what.title}, {self.x} {number_text(end)}" for end in ends_of_axis)
        header = ["setting", *at_ends, f"gain{unit}, {1 - LEVEL:.0%} interval"]
        return Table([*header, "seeds", "p corrected", "verdict"], rows, note)


def _sides(tests: dict[str, Comparison], corrected: list[float]) -> tuple[list[str], list[str]]:
    """The settings whose difference is shown to be above 0, and those below, from the largest difference on."""
    known = [name for name, p in zip(tests, corrected, strict=True) if shown(p)]
    known.sort(key=lambda name: -abs(tests[name].difference))
    above = [name for name in known if tests[name].difference > 0]
    return above, [name for name in known if name not in above]
