"""A layer diagnostic by layer."""

from collections.abc import Sequence
from dataclasses import dataclass

from matplotlib.axes import Axes

from lightning_gpt.errors import CallError
from lightning_gpt.studies.report import plots
from lightning_gpt.studies.report.diagnostics import diagnostic
from lightning_gpt.studies.report.document import Block, Findings, Heading, Picture, Table
from lightning_gpt.studies.report.groups import Group, SeedSpread, groups, layer_values
from lightning_gpt.studies.report.results import StudyResults
from lightning_gpt.studies.report.sections.base import Section, capital, file_name
from lightning_gpt.studies.report.sections.trend import direction
from lightning_gpt.studies.spec.measures import measure, number_text
from lightning_gpt.studies.spec.study import Study

_DEPTH = "model.init_args.n_layer"
_LOG_FROM = 20.0
_ALIKE = 0.01
"""A change from first to last layer counts from this share of the larger of the two."""
_WHEN = {"first": "before training", "last": "after training"}


@dataclass(frozen=True)
class Layers(Section):
    """One line per setting over the layers, as first and as last measured, with the spread over the seeds.

    Args:
        diagnostic: Its name in ``layers.json``, such as ``token_cosine``.
        when: Which of the two the sentences and the table describe: ``first`` or ``last``.
    """

    diagnostic: str
    when: str = "last"

    def check(self, study: Study) -> None:
        diagnostic(self.diagnostic)
        if self.when not in _WHEN:
            raise CallError(f"report: layers: when is {self.when!r}; it must be {' or '.join(_WHEN)}")

    def blocks(self, results: StudyResults) -> list[Block]:
        shown = [group for group in groups(results) if group.layers(self.diagnostic)]
        if not shown:
            return []
        what = diagnostic(self.diagnostic)
        figure, (before, after) = plots.new_figure(2, height=4.3)
        for group, look in zip(shown, plots.looks_of(shown), strict=True):
            for ax, first in ((before, True), (after, False)):
                spreads = group.layers(self.diagnostic, first=first)
                plots.draw_band(ax, range(len(spreads)), spreads, look, group.label)
        for ax, first in ((before, True), (after, False)):
            ax.set(
                xlabel="layer (0: embedding)" if what.of == "stream" else "block",
                title=_when(shown, self.diagnostic, first=first),
            )
            plots.whole_numbers(ax)
        before.set_ylabel(what.title)
        _same_scale(before, after, shown, self.diagnostic)
        plots.legend(figure, [before, after], len(shown))
        caption = f"{capital(what.title)} ({what.meaning}) by layer: mean ± sd over the seeds."
        sentences = [self._steadiness(shown), *self._depths(shown)]
        return [
            Heading(f"{capital(what.title)} by layer"),
            Findings([sentence for sentence in sentences if sentence]),
            Picture(file_name("layers", self.diagnostic), figure, caption),
            self._table(shown),
        ]

    def _ends(self, group: Group) -> list[tuple[float, float]]:
        first = self.when == "first"
        series = [layer_values(result, self.diagnostic, first=first) for result in group.results]
        return [(each[0], each[-1]) for each in series if each and each[0] is not None and each[-1] is not None]

    def _spreads(self, group: Group) -> list[SeedSpread]:
        return group.layers(self.diagnostic, first=self.when == "first")

    def _steadiness(self, shown: Sequence[Group]) -> str:
        ends = [pair for group in shown for pair in self._ends(group) if len(self._spreads(group)) > 1]
        if not ends:
            return ""
        moved = [last - first for first, last in ends if abs(last - first) > _ALIKE * max(abs(first), abs(last))]
        up, down = sum(change > 0 for change in moved), sum(change < 0 for change in moved)
        what = diagnostic(self.diagnostic)
        start, end = ("the embedding", "layer") if what.of == "stream" else ("the first block", "block")
        alike = f", and stays within {_ALIKE:.0%} in {len(ends) - len(moved)}," if len(moved) < len(ends) else ""
        smoothing = ""
        if what.smoothing is not None:
            agree = up if what.smoothing == "higher" else down
            smoothing = f"; over-smoothing would make it {'rise' if what.smoothing == 'higher' else 'fall'}"
            smoothing += f", as it does in {agree} of {len(ends)}"
        return (
            f"From {start} to the last {end} {_WHEN[self.when]}, {what.title} ({what.meaning}) rises in {up} and falls "
            f"in {down}{alike} of {len(ends)} runs{smoothing}."
        )

    def _depths(self, shown: Sequence[Group]) -> list[str]:
        figures, what = measure("scalar:any"), diagnostic(self.diagnostic)
        lasts = [(group.label, self._spreads(group)[-1]) for group in shown]
        each = ", ".join(f"{label}: {figures.text(last.mean, last.deviation)}" for label, last in lasts)
        depths = [group.settings.get(_DEPTH) for group in shown]
        if all(isinstance(depth, int) for depth in depths) and len(set(depths)) == len(depths) > 1:
            way = direction([last.mean for _, last in lasts]).rstrip(",")
            each += f"; with depth it {way}"
        end = "layer" if what.of == "stream" else "block"
        return [f"{capital(what.title)} of the last {end} {_WHEN[self.when]}: {each}."]

    def _table(self, shown: Sequence[Group]) -> Table:
        layers = max(len(self._spreads(group)) for group in shown)
        rows = []
        for group in shown:
            values = [number_text(round(each.mean, 10)) for each in self._spreads(group)]
            rows.append([group.label, *values, *[""] * (layers - len(values))])
        what = diagnostic(self.diagnostic)
        header = [
            "setting",
            "embedding" if what.of == "stream" else "block 0",
            *(str(each) for each in range(1, layers)),
        ]
        return Table(header, rows, f"{capital(what.title)} {_WHEN[self.when]}, mean over the seeds.")


def _when(shown: Sequence[Group], name: str, *, first: bool) -> str:
    runs = [result.layers for group in shown for result in group.results]
    steps = {steps[0 if first else -1] for run in runs if (steps := [e["step"] for e in run if e.get(name)])}
    step = f"step {min(steps):,}" if len(steps) == 1 else "first measured" if first else "last measured"
    return f"before training ({step})" if first and steps == {0} else step if first else f"after training ({step})"


def _same_scale(before: Axes, after: Axes, shown: Sequence[Group], name: str) -> None:
    """Give both plots one vertical scale; a logarithmic one for unbounded values that span a wide range."""
    means = [each.mean for group in shown for first in (True, False) for each in group.layers(name, first=first)]
    if diagnostic(name).high is None and min(means) > 0 and max(means) / min(means) > _LOG_FROM:
        before.set_yscale("log")
        after.set_yscale("log")
    limits = [*before.get_ylim(), *after.get_ylim()]
    for ax in (before, after):
        ax.set_ylim(min(limits), max(limits))
