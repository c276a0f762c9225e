"""How a quantity changes along the blocks: whether gradients of early and late blocks have the same size."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from lightning_gpt.errors import CallError
from lightning_gpt.studies.report import plots
from lightning_gpt.studies.report.chart import new_dot_rows
from lightning_gpt.studies.report.diagnostics import diagnostic
from lightning_gpt.studies.report.document import Block, Findings, Heading, Picture, Table
from lightning_gpt.studies.report.estimates import LEVEL, SeedSpread, spread
from lightning_gpt.studies.report.groups import Group, groups, layer_values
from lightning_gpt.studies.report.results import StudyResults
from lightning_gpt.studies.report.sections.base import Section, capital, file_name
from lightning_gpt.studies.spec.measures import measure, number_text
from lightning_gpt.studies.spec.study import Study

_FEW = 4
_EVEN = 10.0
"""The largest factor between first and last block that counts as the same size."""


@dataclass(frozen=True)
class Flow(Section):
    """The ratio of the first block's figure to the last's, as last measured, and the factor per block.

    For a ratio ``r`` over L blocks, the factor per block from the last to the first is ``r^(1/(L − 1))``. Below 1 the
    quantity vanishes towards the first block, exponentially in the depth where the factor does not depend on L; above
    1 it grows (Hochreiter 1991; Glorot & Bengio 2010, section 4.2; for transformers: Xiong et al. 2020, 2002.04745).

    Args:
        diagnostic: A non-negative layer diagnostic of the blocks, such as ``grad_norm``.
    """

    diagnostic: str

    def check(self, study: Study) -> None:
        if diagnostic(self.diagnostic).of != "blocks":
            raise CallError(f"report: flow needs a diagnostic of the blocks, but {self.diagnostic} is of the stream")

    def blocks(self, results: StudyResults) -> list[Block]:
        ways = [_Way(group, self.diagnostic) for group in groups(results)]
        shown = [way for way in ways if way.ratios]
        if not shown:
            return []
        what = diagnostic(self.diagnostic)
        rows = {way.group.label: way.ratios for way in shown}
        chart, ax = new_dot_rows(list(rows))
        plots.draw_rows(chart, ax, rows, means=False)
        ax.axvline(1.0, color="#1a1a1a", linestyle="--", linewidth=1)
        ax.axvspan(1 / _EVEN, _EVEN, color="#0072B2", alpha=0.08, linewidth=0)
        ax.set_xscale("log")
        ax.set_xlabel(f"{what.title}: first block over last")
        caption = (
            f"{capital(what.title)} of the first block over the last's: one dot per seed; dashed: equal; shaded: "
            f"within a factor of {_EVEN:.0f}."
        )
        gone = [way.group.label for way in ways if any(0 in ends for ends in way.ends)]
        left_out = [
            f"A run with {label} is left out here: {what.title} is 0 in its first or last block." for label in gone
        ]
        return [
            Heading(f"{capital(what.title)} along the blocks"),
            Findings([*self._sentences(shown), *left_out], self._answer(shown)),
            Picture(file_name("flow", self.diagnostic), chart, caption),
            self._table(shown),
        ]

    def _answer(self, shown: Sequence["_Way"]) -> str:
        """Each verdict with its settings, in one sentence."""
        words = {"even": "keeps its size along the blocks", "vanishes": "vanishes towards the first block"}
        words |= {"grows": "grows towards the first block", "open": "may or may not keep its size"}
        found = {verdict: [way.group.label for way in shown if way.verdict == verdict] for verdict in words}
        parts = [f"{words[verdict]} {_named(labels, len(shown))}" for verdict, labels in found.items() if labels]
        return f"{capital(diagnostic(self.diagnostic).title)} {', and '.join(parts)}."

    def _sentences(self, shown: Sequence["_Way"]) -> list[str]:
        title, sentences = diagnostic(self.diagnostic).title, []
        even = [way.group.label for way in shown if way.verdict == "even"]
        if even:
            names = "; ".join(even)
            sentences.append(
                f"The first and the last block are within a factor of {_EVEN:.0f} in {title} with: {names}."
            )
        for way in shown:
            ratio = f"{number_text(way.ratio)} times the last block's{way.interval}"
            if way.verdict in ("vanishes", "grows"):
                sentences.append(
                    f"{capital(title)} {way.verdict} towards the first block with {way.group.label}: there it is "
                    f"{ratio}, a factor of {number_text(way.per_block)} per block."
                )
            elif way.verdict == "open":
                sentences.append(
                    f"Whether {title} keeps its size towards the first block with {way.group.label} is open: there it "
                    f"is {ratio}."
                )
        return sentences

    def _table(self, shown: Sequence["_Way"]) -> Table:
        figures, rows = measure("scalar:any"), []
        for way in shown:
            sides = (spread(side) for side in zip(*way.ends, strict=True))
            ends = [figures.text(each.mean, each.half_width) for each in sides if each is not None]
            rows.append([way.group.label, *ends, number_text(way.ratio) + way.interval, number_text(way.per_block)])
        header = ["setting", "first block", "last block", "first over last", "factor per block"]
        caption = (
            f"{capital(diagnostic(self.diagnostic).title)} after training, mean ± half its {1 - LEVEL:.0%} interval; "
            f"ratio and factor: geometric means over the seeds. A ratio counts where its whole interval does."
        )
        return Table(header, rows, caption)


def _named(labels: Sequence[str], of: int) -> str:
    """Settings by name where they are few, otherwise their number."""
    return f"with {'; '.join(labels)}" if len(labels) <= _FEW else f"in {len(labels)} of {of} settings"


class _Way:
    """First and last block in the runs of one setting; runs of a single block have no ratio."""

    def __init__(self, group: Group, name: str) -> None:
        self.group = group
        series = [layer_values(result, name) for result in group.results]
        self.ends = [(values[0], values[-1]) for values in series if len(values) > 1]
        self.ratios = [first / last for first, last in self.ends if first and last]
        self._steps = max(map(len, series), default=1) - 1

    @property
    def _logarithms(self) -> SeedSpread:
        return SeedSpread(tuple(math.log(ratio) for ratio in self.ratios))

    @property
    def ratio(self) -> float:
        """The first block's figure over the last's."""
        return math.exp(self._logarithms.mean)

    @property
    def per_block(self) -> float:
        """The factor per block, from the last to the first."""
        return float(self.ratio ** (1 / self._steps))

    @property
    def _limits(self) -> tuple[float, float] | None:
        """The ends of the ratio's confidence interval; None for one seed."""
        half = self._logarithms.half_width
        if half is None:
            return None
        return self.ratio * math.exp(-half), self.ratio * math.exp(half)

    @property
    def interval(self) -> str:
        """The interval in brackets, where there is one to show."""
        limits = self._limits
        if limits is None or limits[1] <= limits[0] * (1 + 1e-9):
            return ""
        return f" [{number_text(limits[0])}, {number_text(limits[1])}]"

    @property
    def verdict(self) -> str:
        """``even``, ``vanishes`` or ``grows`` where the whole interval says so; otherwise ``open``."""
        if self._limits is None:
            return "open"
        low, high = self._limits
        if low >= 1 / _EVEN and high <= _EVEN:
            return "even"
        return "vanishes" if high < 1 / _EVEN else "grows" if low > _EVEN else "open"
