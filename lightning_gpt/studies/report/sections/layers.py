"""A layer diagnostic by layer."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median

from matplotlib.axes import Axes

from lightning_gpt.errors import CallError
from lightning_gpt.studies.report import plots
from lightning_gpt.studies.report.chart import new_chart
from lightning_gpt.studies.report.comparisons import Comparison, compare
from lightning_gpt.studies.report.diagnostics import diagnostic
from lightning_gpt.studies.report.document import Block, Findings, Heading, Picture, Table, Tested, Written
from lightning_gpt.studies.report.estimates import SeedSpread, spread
from lightning_gpt.studies.report.groups import Group, groups, label_of, layer_values
from lightning_gpt.studies.report.results import StudyResults
from lightning_gpt.studies.report.sections.base import Section, capital, file_name
from lightning_gpt.studies.report.sections.differences import change_text, findable_text, shown
from lightning_gpt.studies.spec.measures import Measure, measure, number_text
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
        chart = new_chart(2)
        before, after = chart.axes
        for group, look in zip(shown, plots.looks_of(shown), strict=True):
            for ax, first in ((before, True), (after, False)):
                spreads = group.layers(self.diagnostic, first=first)
                plots.draw_band(chart, ax, list(spreads), list(spreads.values()), look, group.label)
        for ax, first in ((before, True), (after, False)):
            ax.set(
                xlabel="layer (0: embedding)" if what.of == "stream" else "block",
                title=_when(shown, self.diagnostic, first=first),
            )
            plots.whole_numbers(ax)
        before.set_ylabel(what.title)
        scale = _same_scale(before, after, shown, self.diagnostic)
        chart.legend(len(shown))
        seeds = plots.seeds_text(_every(shown, self.diagnostic), "from lowest to highest seed")
        caption = f"{capital(what.title)} ({what.meaning}) by layer: {seeds}{scale}."
        depths = self._depths(results, shown)
        return [
            Heading(f"{capital(what.title)} by layer"),
            Tested([test.p for _, _, test in depths], partial(self._findings, shown, depths)),
            Picture(file_name("layers", self.diagnostic), chart, caption),
            self._table(shown),
        ]

    def _findings(
        self, shown: Sequence[Group], depths: list["_Depths"], corrected: list[float], count: int
    ) -> list[Written]:
        steady = self._steadiness(shown)
        tested = [self._depth_sentence(each, p) for each, p in zip(depths, corrected, strict=True)]
        what = Measure(self.diagnostic, diagnostic(self.diagnostic).title)
        least = findable_text(what, [test for _, _, test in depths], count) if depths else ""
        last = [f"{' '.join(tested)} {least}".strip()] if tested else []
        answer = " ".join(each for each in (self._short(shown), *tested[:1]) if each)
        sentences = [steady, *self._lasts(shown), *last]
        return [Findings([sentence for sentence in sentences if sentence], answer)]

    def _ends(self, group: Group) -> list[tuple[float, float]]:
        first = self.when == "first"
        series = [layer_values(result, self.diagnostic, first=first) for result in group.results]
        return [(each[0], each[-1]) for each in series if each and each[0] is not None and each[-1] is not None]

    def _spreads(self, group: Group) -> dict[int, SeedSpread]:
        return group.layers(self.diagnostic, first=self.when == "first")

    def _short(self, shown: Sequence[Group]) -> str:
        """In how many runs the diagnostic rises and falls, in few words."""
        moves = self._moves(shown)
        if not moves:
            return ""
        what = diagnostic(self.diagnostic)
        up, down = sum(move > 0 for move in moves), sum(move < 0 for move in moves)
        way = f"rises in {up} and falls in {down}" if up and down else f"{'rises' if up else 'falls'} in {up or down}"
        start = "the embedding" if what.of == "stream" else "the first block"
        return f"{capital(what.title)} {way} of {len(moves)} runs from {start} to the last {_end(what.of)}."

    def _moves(self, shown: Sequence[Group]) -> list[float]:
        """The change from first to last layer in each run; 0 where it does not count."""
        ends = [pair for group in shown for pair in self._ends(group) if len(self._spreads(group)) > 1]
        counts = [abs(last - first) > _ALIKE * max(abs(first), abs(last)) for first, last in ends]
        return [last - first if each else 0.0 for (first, last), each in zip(ends, counts, strict=True)]

    def _steadiness(self, shown: Sequence[Group]) -> str:
        moves = self._moves(shown)
        if not moves:
            return ""
        up, down = sum(move > 0 for move in moves), sum(move < 0 for move in moves)
        what = diagnostic(self.diagnostic)
        start, end = "the embedding" if what.of == "stream" else "the first block", _end(what.of)
        alike = f", and stays within {_ALIKE:.0%} in {moves.count(0)}," if 0 in moves else ""
        smoothing = ""
        if what.smoothing is not None:
            agree = up if what.smoothing == "higher" else down
            smoothing = f"; over-smoothing would make it {'rise' if what.smoothing == 'higher' else 'fall'}"
            smoothing += f", as it does in {agree} of {len(moves)}"
        return (
            f"From {start} to the last {end} {_WHEN[self.when]}, {what.title} ({what.meaning}) rises in {up} and falls "
            f"in {down}{alike} of {len(moves)} runs{smoothing}."
        )

    def _lasts(self, shown: Sequence[Group]) -> list[str]:
        figures, what = measure("scalar:any"), diagnostic(self.diagnostic)
        lasts = {group.label: last for group in shown if (last := spread(self._last_by_seed(group).values()))}
        each = ", ".join(f"{label}: {figures.text(last.mean, last.half_width)}" for label, last in lasts.items())
        return [f"{capital(what.title)} of the last {_end(what.of)} {_WHEN[self.when]}: {each}."] if lasts else []

    def _depths(self, results: StudyResults, shown: Sequence[Group]) -> list["_Depths"]:
        """The deepest setting against the shallowest, in the last layer, for each setting of the other axes."""
        lines: dict[str, dict[int, Group]] = {}
        for group in shown:
            if isinstance(depth := group.settings.get(_DEPTH), int):
                lines.setdefault(label_of(group.settings, results.study.axes, [_DEPTH]), {})[depth] = group
        found = []
        for label, line in lines.items():
            low, high = min(line), max(line)
            test = compare(self._last_by_seed(line[high]), self._last_by_seed(line[low])) if low < high else None
            if test is not None:
                found.append((label, (low, high), test))
        return found

    def _last_by_seed(self, group: Group) -> dict[int, float]:
        first = self.when == "first"
        series = {result.cell.seed: layer_values(result, self.diagnostic, first=first) for result in group.results}
        return {seed: last for seed, values in series.items() if values and (last := values[-1]) is not None}

    def _depth_sentence(self, depths: "_Depths", p: float) -> str:
        label, (low, high), test = depths
        what = diagnostic(self.diagnostic)
        change = change_text(Measure(self.diagnostic, what.title), test, p)
        where = f"In the last {_end(what.of)}{f' ({label})' if label else ''} it is"
        if not shown(p):
            return f"{where} not shown to differ between {low} and {high} layers: {change}."
        return f"{where} {'higher' if test.difference > 0 else 'lower'} with {high} layers than with {low}: {change}."

    def _table(self, shown: Sequence[Group]) -> Table:
        layers = 1 + max(max(self._spreads(group), default=0) for group in shown)
        rows = []
        for group in shown:
            values = {layer: number_text(round(each.mean, 10)) for layer, each in self._spreads(group).items()}
            rows.append([group.label, *(values.get(layer, "") for layer in range(layers))])
        what = diagnostic(self.diagnostic)
        header = [
            "setting",
            "embedding" if what.of == "stream" else "block 0",
            *(str(each) for each in range(1, layers)),
        ]
        if len(header) > 1 + len(rows):  # a page has more room for rows than for columns
            labels, *lines = zip(header, *rows, strict=True)
            header = ["layer" if what.of == "stream" else "block", *labels[1:]]
            rows = [list(line) for line in lines]
        return Table(header, rows, f"{capital(what.title)} {_WHEN[self.when]}, mean over the seeds.")


_Depths = tuple[str, tuple[int, int], Comparison]
"""A line's name, its smallest and largest depth, and their comparison."""


def _every(shown: Sequence[Group], name: str, whens: Sequence[bool] = (True, False)) -> list[SeedSpread]:
    """The figures of all layers of all settings, as first and as last measured."""
    return [each for group in shown for first in whens for each in group.layers(name, first=first).values()]


def _end(of: str) -> str:
    return "layer" if of == "stream" else "block"


def _when(shown: Sequence[Group], name: str, *, first: bool) -> str:
    runs = [result.layers for group in shown for result in group.results]
    steps = {steps[0 if first else -1] for run in runs if (steps := [e["step"] for e in run if e.get(name)])}
    step = f"step {min(steps):,}" if len(steps) == 1 else "first measured" if first else "last measured"
    return f"before training ({step})" if first and steps == {0} else step if first else f"after training ({step})"


def _same_scale(before: Axes, after: Axes, shown: Sequence[Group], name: str) -> str:
    """Give both plots one vertical scale, logarithmic for unbounded values of a wide range; what to say of it."""
    first, last = ([each.mean for each in _every(shown, name, (when,))] for when in (True, False))
    sizes = [abs(mean) for mean in (*first, *last) if mean]
    wide = diagnostic(name).high is None and bool(sizes) and max(sizes) > _LOG_FROM * min(sizes)
    scale, options, note = "linear", {}, ""
    if wide and min(*first, *last) > 0:
        scale = "log"
    elif wide and max(sizes) > _LOG_FROM * median(map(abs, last)):  # most points would lie on the axis
        linear_up_to = 10.0 ** math.floor(math.log10(max(sizes) / 100))
        scale, options = "symlog", {"linthresh": linear_up_to}
        note = f"; the vertical scale is linear up to {linear_up_to:g} and logarithmic above"
    for ax in (before, after):
        ax.set_yscale(scale, **options)
    limits = [*before.get_ylim(), *after.get_ylim()]
    for ax in (before, after):
        ax.set_ylim(min(limits), max(limits))
    return note
