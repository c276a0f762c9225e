"""A scalar over the optimizer steps."""

from collections import defaultdict
from dataclasses import dataclass

from lightning_gpt.studies.report import plots
from lightning_gpt.studies.report.chart import new_chart
from lightning_gpt.studies.report.document import Block, Heading, Picture
from lightning_gpt.studies.report.estimates import SeedSpread, spread
from lightning_gpt.studies.report.groups import Group, groups
from lightning_gpt.studies.report.results import StudyResults
from lightning_gpt.studies.report.sections.base import Section, capital, file_name
from lightning_gpt.studies.spec.measures import measure
from lightning_gpt.studies.spec.study import Study


@dataclass(frozen=True)
class Curves(Section):
    """One line per setting, with its spread over the seeds.

    Args:
        measure: The scalar to plot.
    """

    measure: str = "val/loss"

    def check(self, study: Study) -> None:
        measure(self.measure)

    def blocks(self, results: StudyResults) -> list[Block]:
        shown = [(group, points) for group in groups(results) if (points := self._points(group))]
        if not shown:
            return []
        chart = new_chart()
        (ax,) = chart.axes
        for (group, points), look in zip(shown, plots.looks_of([group for group, _ in shown]), strict=True):
            plots.draw_band(chart, ax, list(points), list(points.values()), look, group.label)
        what = measure(self.measure)
        plots.readable_numbers(ax)
        ax.set(xlabel="optimizer step", ylabel=what.title)
        chart.legend(len(shown))
        seeds = plots.seeds_text(
            [each for _, points in shown for each in points.values()], "from lowest to highest seed"
        )
        caption = f"{capital(what.label)} over the optimizer steps: {seeds}."
        return [
            Heading(f"{capital(what.label)} during training"),
            Picture(file_name("curve", self.measure), chart, caption),
        ]

    def _points(self, group: Group) -> dict[int, SeedSpread]:
        by_step: dict[int, list[float]] = defaultdict(list)
        scale = measure(self.measure).scale
        for result in group.results:
            for step, value in result.curves.get(measure(self.measure).tag, []):
                by_step[step].append(value * scale)
        return {step: found for step in sorted(by_step) if (found := spread(by_step[step]))}
