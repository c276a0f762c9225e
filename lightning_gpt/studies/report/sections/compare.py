"""A measure of all settings side by side, for variants, which have no numeric axis."""

from dataclasses import dataclass

from lightning_gpt.errors import CallError
from lightning_gpt.studies.report import plots
from lightning_gpt.studies.report.document import Block, Findings, Heading, Picture
from lightning_gpt.studies.report.groups import Group, SeedSpread, groups, label_of, pooled_deviation
from lightning_gpt.studies.report.results import StudyResults
from lightning_gpt.studies.report.sections.base import Section, capital, file_name
from lightning_gpt.studies.spec.measures import measure, number_text
from lightning_gpt.studies.spec.study import Study


@dataclass(frozen=True)
class Compare(Section):
    """One row per setting, with one dot per seed and a bar at the mean.

    Args:
        measure: What to compare.
        beside: The setting to compare the others with, by its name in the report; none when empty. A difference
            counts from twice the standard deviation between seeds.
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
        shown = [(group, found) for group in groups(results) if (found := group.spread(self.measure))]
        if not shown:
            return []
        figure, ax = plots.new_dot_rows({group.label: self._shown_values(group) for group, _ in shown})
        means = [found.mean * what.scale for _, found in shown]
        ax.plot(means, range(len(means)), "|", color="#1a1a1a", markersize=16, markeredgewidth=2)
        ax.set_xlabel(what.title)
        best, worst = min(shown, key=lambda pair: pair[1].mean), max(shown, key=lambda pair: pair[1].mean)
        sentences = []
        if len(shown) > 1:
            low, high = (what.text(pair[1].mean, pair[1].deviation) for pair in (best, worst))
            sentences = [
                f"{capital(what.label)} is lowest with {best[0].label} ({low}{what.suffix}) and highest with "
                f"{worst[0].label} ({high}{what.suffix})."
            ]
            sentences += self._differences({group.label: found for group, found in shown})
        counts = sorted({found.n for _, found in shown})
        seeds = "–".join(str(count) for count in dict.fromkeys((counts[0], counts[-1])))
        caption = f"{capital(what.label)}: one dot per seed (n = {seeds}); bar: mean."
        return [
            Heading(f"{capital(what.label)} by setting"),
            Findings(sentences),
            Picture(file_name("compare", self.measure), figure, caption),
        ]

    def _shown_values(self, group: Group) -> list[float]:
        values = (result.value(self.measure) for result in group.results)
        return [value * measure(self.measure).scale for value in values if value is not None]

    def _differences(self, found: dict[str, SeedSpread]) -> list[str]:
        base, noise = found.get(self.beside), pooled_deviation(found.values())
        if base is None or not noise:
            return []
        what = measure(self.measure)
        others = {label: each.mean - base.mean for label, each in found.items() if label != self.beside}
        below = sorted((label for label, change in others.items() if change <= -2 * noise), key=others.__getitem__)
        above = sorted((label for label, change in others.items() if change >= 2 * noise), key=others.__getitem__)
        said = [
            f"{capital(what.label)} is {way} than that of {self.beside} with: {'; '.join(labels)}."
            for way, labels in (("lower", below), ("higher", above[::-1]))
            if labels
        ]
        return [
            *said,
            f"{len(others) - len(below) - len(above)} of {len(others)} settings differ from {self.beside} by less than "
            f"twice the standard deviation between seeds, which is {number_text(noise * what.scale)}{what.suffix} over "
            f"all settings.",
        ]
