"""How a quantity changes along the blocks: whether gradients of early and late blocks have the same size."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import geometric_mean

from lightning_gpt.errors import CallError
from lightning_gpt.studies.report import plots
from lightning_gpt.studies.report.diagnostics import diagnostic
from lightning_gpt.studies.report.document import Block, Findings, Heading, Picture, Table
from lightning_gpt.studies.report.groups import Group, groups, layer_values
from lightning_gpt.studies.report.results import StudyResults
from lightning_gpt.studies.report.sections.base import Section, capital, file_name
from lightning_gpt.studies.spec.measures import measure, number_text
from lightning_gpt.studies.spec.study import Study

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
        figure, ax = plots.new_dot_rows({way.group.label: way.ratios for way in shown})
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
            Findings([*self._sentences(shown), *left_out]),
            Picture(file_name("flow", self.diagnostic), figure, caption),
            self._table(shown),
        ]

    def _sentences(self, shown: Sequence["_Way"]) -> list[str]:
        title, sentences = diagnostic(self.diagnostic).title, []
        even = [way.group.label for way in shown if way.is_even]
        if even:
            names = "; ".join(even)
            sentences.append(
                f"The first and the last block are within a factor of {_EVEN:.0f} in {title} with: {names}."
            )
        return sentences + [
            f"{capital(title)} {'vanishes' if way.ratio < 1 else 'grows'} towards the first block with "
            f"{way.group.label}: there it is {number_text(way.ratio)} times the last block's, a factor of "
            f"{number_text(way.per_block)} per block."
            for way in shown
            if not way.is_even
        ]

    def _table(self, shown: Sequence["_Way"]) -> Table:
        figures, rows = measure("scalar:any"), []
        for way in shown:
            layers = way.group.layers(self.diagnostic)
            ends = [figures.text(each.mean, each.deviation) for each in (layers[0], layers[-1])]
            rows.append([way.group.label, *ends, number_text(way.ratio), number_text(way.per_block)])
        header = ["setting", "first block", "last block", "first over last", "factor per block"]
        caption = (
            f"{capital(diagnostic(self.diagnostic).title)} after training, mean ± sd over the seeds; ratio and factor: "
            "geometric means over the seeds."
        )
        return Table(header, rows, caption)


class _Way:
    """First and last block in the runs of one setting; runs of a single block have no ratio."""

    def __init__(self, group: Group, name: str) -> None:
        self.group = group
        series = [layer_values(result, name) for result in group.results]
        self.ends = [(values[0], values[-1]) for values in series if len(values) > 1]
        self.ratios = [first / last for first, last in self.ends if first and last]
        self._steps = max(map(len, series), default=1) - 1

    @property
    def ratio(self) -> float:
        """The first block's figure over the last's."""
        return geometric_mean(self.ratios)

    @property
    def per_block(self) -> float:
        """The factor per block, from the last to the first."""
        return float(self.ratio ** (1 / self._steps))

    @property
    def is_even(self) -> bool:
        return 1 / _EVEN <= self.ratio <= _EVEN
