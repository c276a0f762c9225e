"""A measure along an axis of the grid, and whether it changes in the same direction as published figures."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from matplotlib.axes import Axes

from lightning_gpt.errors import CallError
from lightning_gpt.studies.report import plots
from lightning_gpt.studies.report.document import Block, Findings, Heading, Picture
from lightning_gpt.studies.report.groups import SeedSpread, groups, label_of, pooled_deviation, spread
from lightning_gpt.studies.report.quantity import Quantity
from lightning_gpt.studies.report.results import StudyResults
from lightning_gpt.studies.report.sections.base import Section, capital, file_name
from lightning_gpt.studies.spec.measures import measure, number_text
from lightning_gpt.studies.spec.study import Reference, Study


@dataclass(frozen=True)
class Trend(Section):
    """A measure against a numeric axis, with one line for each setting of the other axes.

    Args:
        x: The axis, by its short name or its key.
        y: The measure.
    """

    x: str
    y: str

    def check(self, study: Study) -> None:
        measure(self.y)
        axis = self._axis(study)
        values = study.grid.get(axis, ["none"])
        if not all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
            raise CallError(
                f"report: trend: {self.x!r} is not a numeric axis; the axes of the grid are {_named(study)}"
            )

    def _axis(self, study: Study) -> str:
        return next((key for key, short in study.axes.items() if self.x in (key, short)), "")

    def blocks(self, results: StudyResults) -> list[Block]:
        axis, what = self._axis(results.study), measure(self.y)
        lines = self._lines(results, axis)
        if not lines:
            return []
        reference = results.study.reference
        theirs = reference.values.get(self.y) if reference is not None and reference.axis == axis else None
        figure, axes = plots.new_figure(2 if theirs else 1)
        for (label, points), look in zip(lines.items(), plots.looks(len(lines), ordered=False), strict=True):
            plots.draw_spreads(axes[0], list(points), list(points.values()), look, label or "ours")
        axes[0].set(xlabel=self.x, ylabel=what.title)
        if reference is not None and theirs:
            _draw_beside(axes[1], next(iter(lines.values())), theirs, reference, self.x)
        for ax in axes:
            _ticks(ax, sorted({x for points in lines.values() for x in points}))
        plots.legend(figure, axes[:1], len(lines))
        caption = f"{capital(what.label)} against {self.x}: mean ± sd over the seeds (n = {_counts(lines)})."
        if reference is not None and theirs:
            caption += f" Right: each relative to its own first point; dashed: {reference.name}."
        sentences = [self._sentence(label, points) for label, points in lines.items()]
        if reference is not None and theirs:
            sentences += [_against(reference, theirs, points, what.label) for points in list(lines.values())[:1]]
        return [
            Heading(f"{capital(what.label)} against {self.x}"),
            Findings([sentence for sentence in sentences if sentence]),
            Picture(file_name("trend", self.y, self.x), figure, caption),
        ]

    def _lines(self, results: StudyResults, axis: str) -> dict[str, dict[float, SeedSpread]]:
        lines: dict[str, dict[float, SeedSpread]] = {}
        quantity = Quantity(self.y)
        for group in groups(results):
            found = spread(quantity.of(result) for result in group.results)
            if found is not None:
                label = label_of(group.settings, results.study.axes, [axis])
                lines.setdefault(label, {})[float(group.settings[axis])] = found
        return lines

    def _sentence(self, label: str, points: dict[float, SeedSpread]) -> str:
        if len(points) < 2:
            return ""
        what, xs = measure(self.y), list(points)
        means = [each.mean for each in points.values()]
        steps = ", ".join(f"{number_text(x)}: {_with_deviation(points[x])}" for x in xs)
        of = f" ({label})" if label else ""
        sentence = f"{capital(what.label)}{of} {direction(means)} with {self.x} ({steps}{what.suffix})."
        noise = pooled_deviation(points.values())
        if noise is None:
            return sentence + " With one seed each, the spread between seeds is unknown."
        change = abs(means[-1] - means[0])
        if noise == 0:
            return sentence
        ratio = change / noise
        verdict = "within the noise of the seeds" if ratio < 2 else "beyond the noise of the seeds"
        return sentence + f" The change from end to end is {ratio:.1f} times the sd between seeds: {verdict}."


def _named(study: Study) -> str:
    return ", ".join(name for key, name in study.axes.items() if key in study.grid) or "none"


def direction(values: Sequence[float]) -> str:
    """The direction in which a sequence changes, in words."""
    steps = [later - earlier for earlier, later in pairwise(values)]
    if all(step < 0 for step in steps):
        return "falls at every step"
    if all(step > 0 for step in steps):
        return "rises at every step"
    if values[-1] == values[0]:
        return "ends where it began, with changes in between,"
    return f"{'falls' if values[-1] < values[0] else 'rises'} from end to end, though not at every step,"


def _against(reference: Reference, theirs: dict[Any, float], ours: dict[float, SeedSpread], label: str) -> str:
    """Whether ours changes in the same direction as theirs, over the axis values that both have."""
    both = [x for x in sorted(float(x) for x in theirs) if x in ours]
    if len(both) < 2:
        return ""
    their = [{float(x): value for x, value in theirs.items()}[x] for x in both]
    our = [ours[x].mean for x in both]
    there, here = direction(their).rstrip(","), direction(our).rstrip(",")
    factors = f"{our[-1] / our[0]:.3g} times from first to last here, {their[-1] / their[0]:.3g} times there"
    if there == here:
        return f"This agrees with {reference.name} in direction: their {label} {there} too ({factors})."
    return f"This differs from {reference.name}: their {label} {there}, ours {here} ({factors})."


def _draw_beside(
    ax: Axes, ours: dict[float, SeedSpread], theirs: dict[Any, float], reference: Reference, x_title: str
) -> None:
    first = next(iter(ours.values())).mean
    scaled = [SeedSpread(each.mean / first, (each.deviation or 0.0) / abs(first), each.n) for each in ours.values()]
    plots.draw_spreads(ax, list(ours), scaled, plots.looks(1, ordered=False)[0], "ours")
    values = list(theirs.values())
    style = {"color": plots.THEIRS, "linestyle": "--", "marker": "s", "markersize": 5}
    relative = [value / values[0] for value in values]
    ax.plot([float(x) for x in theirs], relative, label=f"{reference.name} (theirs)", **style)  # type: ignore[arg-type]
    ax.set(xlabel=x_title, ylabel="relative to the first")
    ax.legend()


def _ticks(ax: Axes, xs: Sequence[float]) -> None:
    if len(xs) <= 8:
        ax.set_xticks(xs, [number_text(x) for x in xs])


def _with_deviation(point: SeedSpread) -> str:
    if point.deviation is None:
        return number_text(point.mean)
    return measure("scalar:any").text(point.mean, point.deviation)


def _counts(lines: dict[str, dict[float, SeedSpread]]) -> str:
    counts = sorted({point.n for points in lines.values() for point in points.values()})
    return "–".join(str(count) for count in dict.fromkeys((counts[0], counts[-1])))
