"""A measure along an axis of the grid, and whether it changes in the same direction as published figures."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

from matplotlib.axes import Axes

from lightning_gpt.studies.report import plots
from lightning_gpt.studies.report.chart import Chart, new_chart
from lightning_gpt.studies.report.comparisons import Comparison, compare
from lightning_gpt.studies.report.document import Block, Findings, Heading, Picture, Tested, Written
from lightning_gpt.studies.report.estimates import SeedSpread
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
from lightning_gpt.studies.spec.measures import measure, number_text
from lightning_gpt.studies.spec.study import Reference, Study

_ANSWERED = 2
"""Of so many lines the report's first paragraph speaks."""
_Line = dict[float, Group]
"""The groups of one line, by their value on the axis, in order."""


@dataclass(frozen=True)
class Trend(Section):
    """A measure against a numeric axis, with one line for each setting of the other axes.

    Tested are the change from end to end and that of each step.

    Args:
        x: The axis, by its short name or its key.
        y: The measure.
    """

    x: str
    y: str

    def check(self, study: Study) -> None:
        measure(self.y)
        numeric_axis(study, self.x, "trend")

    def blocks(self, results: StudyResults) -> list[Block]:
        axis, what = numeric_axis(results.study, self.x, "trend"), measure(self.y)
        lines = self._lines(results, axis)
        if not lines:
            return []
        reference = results.study.reference
        theirs = reference.values.get(self.y) if reference is not None and reference.axis == axis else None
        spreads = {label: self._spreads(line) for label, line in lines.items()}
        chart = new_chart(2 if theirs else 1)
        axes = chart.axes
        for (label, points), look in zip(spreads.items(), plots.looks(len(lines), ordered=False), strict=True):
            plots.draw_spreads(chart, axes[0], list(points), list(points.values()), look, label or "ours")
        axes[0].set(xlabel=self.x, ylabel=what.title + results.mark(self.y))
        if reference is not None and theirs:
            _draw_beside(chart, axes[1], next(iter(spreads.values())), theirs, reference, self.x)
        plots.readable_axis(axes[0].yaxis)
        for ax in axes:
            _ticks(ax, sorted({x for points in spreads.values() for x in points}))
        if theirs and len(lines) == 1:
            chart.legend(2, axes[1])
        else:
            chart.legend(len(lines))
        every = [each for points in spreads.values() for each in points.values()]
        caption = f"{capital(what.label)} against {self.x}: {plots.seeds_text(every, 'one dot per seed')}."
        if reference is not None and theirs:
            caption += f" Right: each relative to its own first point; dashed: {reference.name}."
        caption += results.warning(self.y)
        why_not = results.untested(self.y)
        tests = {
            # the first line is held against theirs
            label: {} if why_not else self._steps(line, (theirs or {}) if number == 0 else {})
            for number, (label, line) in enumerate(lines.items())
        }
        against = _Against(reference, theirs, spreads, self.y) if reference is not None and theirs else None
        return [
            Heading(f"{capital(what.label)} against {self.x}"),
            Tested(
                [each.p for steps in tests.values() for each in steps.values()],
                partial(self._written, spreads, tests, against, why_not or ONE_SEED),
            ),
            Picture(file_name("trend", self.y, self.x), chart, caption),
        ]

    def _lines(self, results: StudyResults, axis: str) -> dict[str, _Line]:
        lines: dict[str, _Line] = {}
        for group in groups(results):
            if group.spread(self.y) is not None:
                label = label_of(group.settings, results.study.axes, [axis])
                lines.setdefault(label, {})[float(group.settings[axis])] = group
        return {label: dict(sorted(line.items())) for label, line in lines.items()}

    def _spreads(self, line: _Line) -> dict[float, SeedSpread]:
        found = {x: group.spread(self.y) for x, group in line.items()}
        return {x: each.scaled(measure(self.y).scale) for x, each in found.items() if each is not None}

    def _steps(self, line: _Line, theirs: dict[Any, float]) -> dict[tuple[float, float], Comparison]:
        """The tests of a line: its end against its beginning, each step, and the ends of what ``theirs`` has too."""
        xs = list(line)
        if len(xs) < 2:
            return {}
        both = [x for x in xs if x in {float(each) for each in theirs}]
        pairs = dict.fromkeys([(xs[0], xs[-1]), *pairwise(xs), *([(both[0], both[-1])] if len(both) > 1 else [])])
        found = {(a, b): compare(line[b].by_seed(self.y), line[a].by_seed(self.y)) for a, b in pairs}
        return {pair: each for pair, each in found.items() if each is not None}

    def _written(
        self,
        spreads: dict[str, dict[float, SeedSpread]],
        tests: dict[str, dict[tuple[float, float], Comparison]],
        against: "_Against | None",
        why_not: str,
        corrected: list[float],
        count: int,
    ) -> list[Written]:
        what, left = measure(self.y), iter(corrected)
        sentences, answers, rows, ps = [], [], {}, []
        for label, steps in tests.items():
            points, p_of = spreads[label], {pair: next(left) for pair in steps}
            ps += list(p_of.values())
            for (a, b), each in steps.items():
                rows[f"{f'{label}: ' if label else ''}{number_text(a)} to {number_text(b)}"] = each
            if len(points) < 2:
                continue
            of = f" ({label})" if label else ""
            unknown = "" if steps else f" {why_not}"
            values = ", ".join(f"{number_text(x)}: {_with_interval(each)}" for x, each in points.items())
            way, single = self._way(list(points), steps, p_of)
            said = f"{capital(what.label)}{of} {way}"
            sentences.append(f"{said}{single}. Means: {values}{what.suffix}.{unknown}")
            answers.append(f"{said}.")
            if against is not None and len(answers) == 1:
                sentences.append(against.sentence(steps, p_of))
        if not rows:
            return [Findings(sentences)] if sentences else []
        least = findable_text(what, list(rows.values()), count)
        if least:
            sentences.append(least)
        caption = f"{capital(what.label)} at the second value of {self.x} minus that at the first."
        table = difference_table(what, rows, ps, count, f"from {self.x}", caption)
        return [Findings(sentences, " ".join(answers[:_ANSWERED])), table]

    def _way(
        self, xs: list[float], steps: dict[tuple[float, float], Comparison], p_of: dict[tuple[float, float], float]
    ) -> tuple[str, str]:
        """How the measure changes along the axis, as far as it is shown: from end to end, and its single steps."""
        what, ends = measure(self.y), (xs[0], xs[-1])
        a, b = map(number_text, ends)
        if ends not in steps:
            return f"was measured at {len(xs)} values of {self.x}", ""
        end = steps[ends]
        change = change_text(what, end, p_of[ends])
        if len(xs) == 2:
            if not shown(p_of[ends]):
                return f"is not shown to differ between {self.x} {a} and {b} ({change})", ""
            return f"is {'higher' if end.difference > 0 else 'lower'} at {self.x} {b} than at {a} ({change})", ""
        known = [pair for pair in pairwise(xs) if pair in steps and shown(p_of[pair])]
        ups = {steps[pair].difference > 0 for pair in known}
        if len(known) == len(xs) - 1 and len(ups) == 1:
            return f"{_verb(ups.pop())} at every step of {self.x} from {a} to {b} ({change})", ""
        each = ", ".join(
            f"{number_text(x)} to {number_text(y)} ({_verb(steps[x, y].difference > 0)})" for x, y in known
        )
        single = f"; of single steps, {each} {_be(len(known))} shown" if known else "; no single step is shown"
        if shown(p_of[ends]):
            return f"{_verb(end.difference > 0)} from {self.x} {a} to {b} ({change})", single
        return f"is not shown to change from {self.x} {a} to {b} ({change})", single


@dataclass(frozen=True)
class _Against:
    """Whether ours changes in the same direction as theirs, from end to end of what both have."""

    reference: Reference
    theirs: dict[Any, float]
    spreads: dict[str, dict[float, SeedSpread]]
    y: str

    def sentence(self, steps: dict[tuple[float, float], Comparison], p_of: dict[tuple[float, float], float]) -> str:
        """The sentence about the first line; it needs a test between the ends that both have."""
        ours, label = next(iter(self.spreads.values())), measure(self.y).label
        their = {float(x): value for x, value in self.theirs.items()}
        both = [x for x in ours if x in their]
        if len(both) < 2:
            return f"Fewer than two points are also those of {self.reference.name}."
        a, b = both[0], both[-1]
        factors = f"{ours[b].mean / ours[a].mean:.3g} times here, {their[b] / their[a]:.3g} times there"
        where = f"from {number_text(a)} to {number_text(b)} their {label} {_direction(their[b] - their[a])}"
        if (a, b) not in steps or not shown(p_of[a, b]):
            ours_too = "ours is not shown to change"
            return f"Whether this agrees with {self.reference.name} is open: {where}, {ours_too} ({factors})."
        here = steps[a, b].difference
        if here * (their[b] - their[a]) > 0:
            return f"This agrees with {self.reference.name} in direction: {where} too ({factors})."
        return f"This differs from {self.reference.name}: {where}, ours {_verb(here > 0)} ({factors})."


def _be(count: int) -> str:
    return "is" if count == 1 else "are"


def _direction(change: float) -> str:
    return _verb(change > 0) if change else "does not change"


def _verb(up: bool) -> str:
    return "rises" if up else "falls"


def _draw_beside(
    chart: Chart, ax: Axes, ours: dict[float, SeedSpread], theirs: dict[Any, float], reference: Reference, x_title: str
) -> None:
    first = next(iter(ours.values())).mean
    scaled = [each.scaled(1 / first) for each in ours.values()]
    plots.draw_spreads(chart, ax, list(ours), scaled, plots.looks(1, ordered=False)[0], "ours")
    values = dict(sorted((float(x), value) for x, value in theirs.items()))
    style = {"color": plots.THEIRS, "linestyle": "--", "marker": "s", "markersize": 3.5, "linewidth": 1.2}
    relative = [value / values[min(values)] for value in values.values()]
    ax.plot([*values], relative, label=f"{reference.name} (theirs)", **style)  # type: ignore[arg-type]
    chart.note(ax, reference.name, "published", [*values], relative)
    ax.set(xlabel=x_title, ylabel="relative to the first")


def _ticks(ax: Axes, xs: Sequence[float]) -> None:
    if len(xs) <= 8:
        ax.set_xticks(xs, [number_text(x) for x in xs])


def _with_interval(point: SeedSpread) -> str:
    return measure("scalar:any").text(point.mean, point.half_width)
