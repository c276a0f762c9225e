"""What becomes of a quantity on its way through the blocks: whether early and late blocks get gradients of one size."""

import math
from dataclasses import dataclass

from lightning_gpt.errors import CallError
from lightning_gpt.studies import plots
from lightning_gpt.studies.diagnostics import diagnostic
from lightning_gpt.studies.document import Block, Findings, Heading, Picture, Table
from lightning_gpt.studies.groups import Group, Spread, groups, layer_values, spread
from lightning_gpt.studies.measures import measure, number_text
from lightning_gpt.studies.results import Result, StudyResults
from lightning_gpt.studies.sections.base import Section, capital, file_name
from lightning_gpt.studies.spec import Study

_EVEN = 10.0
"""Up to this factor between the first block and the last, either way, they are called of one size."""


@dataclass(frozen=True)
class Flow(Section):
    """The first block's figure over the last's, as last measured, and the factor a block that it comes to.

    With a ratio ``r`` over L blocks the factor a block, back from the last to the first, is ``r^(1/(L − 1))``: below 1
    the quantity vanishes on its way back, exponentially in the depth where the factor does not depend on L; above 1 it
    explodes (Hochreiter 1991; Glorot & Bengio 2010, section 4.2; of transformers: Xiong et al. 2020, 2002.04745).

    Args:
        diagnostic: A depth diagnostic of the blocks that is never negative, such as ``grad_norm``.
    """

    diagnostic: str

    def check(self, study: Study) -> None:
        if diagnostic(self.diagnostic).of != "blocks":
            raise CallError(f"report: flow needs a diagnostic of the blocks, and {self.diagnostic} is of the stream")

    def blocks(self, results: StudyResults) -> list[Block]:
        shown = [(group, found) for group in groups(results) if (found := self._logarithm(group)) is not None]
        if not shown:
            return []
        what = diagnostic(self.diagnostic)
        figure, (ax,) = plots.new_figure(height=1.2 + 0.42 * len(shown), width=7.2)
        for row, (group, _) in enumerate(shown):
            ratios = [math.exp(value) for value in self._logarithms(group)]
            ax.plot(ratios, [row] * len(ratios), "o", color="#0072B2", alpha=0.7, markersize=6)
        ax.axvline(1.0, color="#1a1a1a", linestyle="--", linewidth=1)
        ax.axvspan(1 / _EVEN, _EVEN, color="#0072B2", alpha=0.08, linewidth=0)
        ax.set_xscale("log")
        ax.set_yticks(range(len(shown)), [group.label for group, _ in shown])
        ax.set_ylim(len(shown) - 0.5, -0.5)
        ax.set_xlabel(f"{what.title}: first block over last")
        caption = (
            f"{capital(what.title)} of the first block over the last's: a dot a seed; dashed: equal; shaded: within a "
            f"factor of {_EVEN:.0f}."
        )
        return [
            Heading(f"{capital(what.title)} on its way through the blocks"),
            Findings([*self._sentences(shown), *self._nothing(results)]),
            Picture(file_name("flow", self.diagnostic), figure, caption),
            self._table(shown),
        ]

    def _logarithms(self, group: Group) -> list[float]:
        """ln of the first block's figure over the last's, a number a seed; none of a single block or of a 0."""
        found = []
        for result in group.results:
            values = layer_values(result, self.diagnostic)
            first, last = (values[0], values[-1]) if len(values) > 1 else (None, None)
            if first and last and first > 0 and last > 0:
                found.append(math.log(first / last))
        return found

    def _logarithm(self, group: Group) -> Spread | None:
        return spread(self._logarithms(group))

    def _sentences(self, shown: list[tuple[Group, Spread]]) -> list[str]:
        title, sentences = diagnostic(self.diagnostic).title, []
        even = [group.label for group, found in shown if abs(found.mean) <= math.log(_EVEN)]
        if even:
            names = "; ".join(even)
            sentences.append(f"First and last block are within a factor of {_EVEN:.0f} in {title} with: {names}.")
        for group, found in shown:
            if abs(found.mean) > math.log(_EVEN):
                sentences.append(
                    f"{capital(title)} {'vanishes' if found.mean < 0 else 'grows'} toward the first block with "
                    f"{group.label}: there it is {number_text(math.exp(found.mean))} times the last block's, a "
                    f"factor of {number_text(_a_block(group, found, self.diagnostic))} a block."
                )
        return sentences

    def _nothing(self, results: StudyResults) -> list[str]:
        """What cannot be drawn on a logarithmic scale is said."""
        title = diagnostic(self.diagnostic).title
        gone = [
            group.label for group in groups(results) if any(_is_gone(each, self.diagnostic) for each in group.results)
        ]
        return [f"{capital(title)} of an end is 0 in a run with {label}, which is left out here." for label in gone]

    def _table(self, shown: list[tuple[Group, Spread]]) -> Table:
        figures, rows = measure("scalar:any"), []
        for group, found in shown:
            layers = group.layers(self.diagnostic)
            ends = [figures.text(each.mean, each.deviation) for each in (layers[0], layers[-1])]
            factor = number_text(_a_block(group, found, self.diagnostic))
            rows.append([group.label, *ends, number_text(math.exp(found.mean)), factor])
        header = ["setting", "first block", "last block", "first over last", "factor a block"]
        caption = (
            f"{capital(diagnostic(self.diagnostic).title)} after training, mean ± sd over the seeds; ratio and factor: "
            "geometric means over the seeds."
        )
        return Table(header, rows, caption)


def _is_gone(result: Result, name: str) -> bool:
    values = layer_values(result, name)
    return len(values) > 1 and 0 in (values[0], values[-1])


def _a_block(group: Group, logarithm: Spread, name: str) -> float:
    return math.exp(logarithm.mean / (len(group.layers(name)) - 1))
