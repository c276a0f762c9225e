"""A measure of all settings side by side, for variants, which have no numeric axis."""

from dataclasses import dataclass
from functools import partial

from lightning_gpt.errors import CallError
from lightning_gpt.studies.report import plots
from lightning_gpt.studies.report.chart import new_dot_rows
from lightning_gpt.studies.report.comparisons import Comparison, compare_with
from lightning_gpt.studies.report.document import Block, Findings, Heading, Picture, Tested, Written
from lightning_gpt.studies.report.estimates import SeedSpread
from lightning_gpt.studies.report.groups import Group, groups, label_of
from lightning_gpt.studies.report.results import StudyResults
from lightning_gpt.studies.report.sections.base import Section, capital, file_name
from lightning_gpt.studies.report.sections.differences import (
    ONE_SEED,
    change_text,
    difference_table,
    findable_text,
    shown,
)
from lightning_gpt.studies.spec.measures import measure
from lightning_gpt.studies.spec.study import Study

_NAMED = 6


@dataclass(frozen=True)
class Compare(Section):
    """One row per setting, with one dot per seed and a bar at the mean.

    Args:
        measure: What to compare.
        beside: The setting to compare the others with, by its name in the report; none when empty. Each of the others
            is tested against it.
    """

    measure: str
    beside: str = ""

    def check(self, study: Study) -> None:
        measure(self.measure)
        labels = list(dict.fromkeys(label_of(cell.settings, study.axes) for cell in study.cells))
        if self.beside and self.beside not in labels:
            raise CallError(
                f"report: compare: beside is {self.beside!r}; it must be one of the settings {'; '.join(labels)}"
            )

    def blocks(self, results: StudyResults) -> list[Block]:
        what = measure(self.measure)
        found = {group.label: (group, each) for group in groups(results) if (each := group.spread(self.measure))}
        if not found:
            return []
        spreads = {label: each.scaled(what.scale) for label, (_, each) in found.items()}
        chart, ax = new_dot_rows(list(spreads))
        plots.draw_rows(chart, ax, {label: each.values for label, each in spreads.items()}, means=True)
        plots.readable_axis(ax.xaxis)
        if self.beside in spreads:
            ax.axvline(spreads[self.beside].mean, color="#888888", linewidth=1, linestyle="--", zorder=0)
        ax.set_xlabel(what.title + results.mark(self.measure))
        counts = sorted({each.n for each in spreads.values()})
        seeds = "–".join(str(count) for count in dict.fromkeys((counts[0], counts[-1])))
        caption = f"{capital(what.label)}: one dot per seed (n = {seeds}); bar: mean."
        if self.beside in spreads:
            caption += f" Dashed: the mean of {self.beside}."
        caption += results.warning(self.measure)
        why_not = results.untested(self.measure)
        tests = {} if why_not else self._comparisons({label: group for label, (group, _) in found.items()})
        ends = [] if why_not else self._ends({label: each for label, (_, each) in found.items()})
        if not why_not and self.beside and len(found) > 1 and not tests:
            why_not = ONE_SEED if self.beside in found else f"{self.beside} has no figures to compare the others with."
        return [
            Heading(f"{capital(what.label)} by setting"),
            Tested([each.p for each in tests.values()], partial(self._written, ends, tests, why_not)),
            Picture(file_name("compare", self.measure), chart, caption),
        ]

    def _ends(self, found: dict[str, SeedSpread]) -> list[str]:
        if len(found) < 2:
            return []
        what = measure(self.measure)
        best, worst = min(found, key=lambda label: found[label].mean), max(found, key=lambda label: found[label].mean)
        if found[best].mean == found[worst].mean:
            return [f"All settings have the same mean of {what.label} ({what.text(found[best].mean)}{what.suffix})."]
        low, high = (what.text(found[label].mean, found[label].half_width) for label in (best, worst))
        return [
            f"The lowest mean of {what.label} is that of {best} ({low}{what.suffix}), the highest that of {worst} "
            f"({high}{what.suffix})."
        ]

    def _comparisons(self, found: dict[str, Group]) -> dict[str, Comparison]:
        """Each setting against ``beside``, by its name; those that cannot be tested are left out."""
        if self.beside not in found:
            return {}
        return compare_with(self.beside, {label: group.by_seed(self.measure) for label, group in found.items()})

    def _written(
        self, ends: list[str], tests: dict[str, Comparison], why_not: str, corrected: list[float], count: int
    ) -> list[Written]:
        if not tests:
            said = [*ends, *([why_not] if why_not else [])]
            return [Findings(said)] if said else []
        what, p_of = measure(self.measure), dict(zip(tests, corrected, strict=True))
        order = sorted(tests, key=lambda label: tests[label].difference)
        lower = [label for label in order if shown(p_of[label]) and tests[label].difference < 0]
        higher = [label for label in order[::-1] if shown(p_of[label]) and tests[label].difference > 0]
        sides = []
        for way, labels in (("lower", lower), ("higher", higher)):
            if labels:
                each = [f"{label} ({change_text(what, tests[label], p_of[label])})" for label in labels]
                more = f"; and {len(each) - _NAMED} more, see the table" if len(each) > _NAMED else ""
                sides.append(
                    f"Compared with {self.beside}, {what.label} is {way} with {'; '.join(each[:_NAMED])}{more}."
                )
        left = len(tests) - len(lower) - len(higher)
        least = findable_text(what, list(tests.values()), count)
        rest = [f"{_not_shown(left, len(tests))} from {self.beside} in {what.label}. {least}"] if left else [least]
        caption = f"{capital(what.label)} of each setting minus that of {self.beside}."
        table = difference_table(what, tests, corrected, count, "setting", caption)
        return [Findings([*ends, *sides, *filter(None, rest)], self._answer(lower, higher, len(tests))), table]

    def _answer(self, lower: list[str], higher: list[str], tested: int) -> str:
        label = measure(self.measure).label
        if not lower and not higher:
            return f"No setting is shown to differ from {self.beside} in {label}, of {tested} tested."
        parts = []
        for way, labels in (("lower", lower), ("higher", higher)):
            more = f" and {len(labels) - _NAMED} more" if labels[_NAMED:] else ""
            parts += [f"{way} with {', '.join(labels[:_NAMED])}{more}"] if labels else []
        left = tested - len(lower) - len(higher)
        rest = f"; {_not_shown(left, tested)}" if left else ""
        return f"Compared with {self.beside}, {label} is {' and '.join(parts)}{rest}."


def _not_shown(count: int, of: int) -> str:
    return f"{count} of {of} settings {'is' if count == 1 else 'are'} not shown to differ"
