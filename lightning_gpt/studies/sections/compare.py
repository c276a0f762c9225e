"""A measure of every setting side by side: for variants, which are no numbers to plot against."""

from dataclasses import dataclass

from lightning_gpt.studies import plots
from lightning_gpt.studies.document import Block, Findings, Heading, Picture
from lightning_gpt.studies.groups import groups
from lightning_gpt.studies.measures import measure
from lightning_gpt.studies.results import StudyResults
from lightning_gpt.studies.sections.base import Section, capital, file_name
from lightning_gpt.studies.spec import Study


@dataclass(frozen=True)
class Compare(Section):
    """A dot a seed, a bar at the mean, a line a setting.

    Args:
        measure: What is compared.
    """

    measure: str

    def check(self, study: Study) -> None:
        measure(self.measure)

    def blocks(self, results: StudyResults) -> list[Block]:
        what = measure(self.measure)
        shown = [(group, found) for group in groups(results) if (found := group.spread(self.measure))]
        if not shown:
            return []
        figure, (ax,) = plots.new_figure(height=1.2 + 0.42 * len(shown), width=7.2)
        for row, (group, found) in enumerate(shown):
            values = [value * what.scale for each in group.results if (value := each.value(self.measure)) is not None]
            ax.plot(values, [row] * len(values), "o", color="#0072B2", alpha=0.7, markersize=6)
            ax.plot([found.mean * what.scale], [row], "|", color="#1a1a1a", markersize=16, markeredgewidth=2)
        ax.set_yticks(range(len(shown)), [group.label for group, _ in shown])
        ax.set_ylim(len(shown) - 0.5, -0.5)
        ax.set_xlabel(what.title)
        best, worst = min(shown, key=lambda pair: pair[1].mean), max(shown, key=lambda pair: pair[1].mean)
        sentences = []
        if len(shown) > 1:
            low, high = (what.text(pair[1].mean, pair[1].deviation) for pair in (best, worst))
            unit = f" {what.unit}" if what.unit else ""
            sentences = [
                f"{capital(what.label)} is least with {best[0].label} ({low}{unit}) and most with "
                f"{worst[0].label} ({high}{unit})."
            ]
        counts = sorted({found.n for _, found in shown})
        seeds = "–".join(str(count) for count in dict.fromkeys((counts[0], counts[-1])))
        caption = f"{capital(what.label)}: a dot a seed (n = {seeds}), a bar at the mean."
        return [
            Heading(f"{capital(what.label)} by setting"),
            Findings(sentences),
            Picture(file_name("compare", self.measure), figure, caption),
        ]
