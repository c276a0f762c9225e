"""A line or a power law fitted to all cells."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from lightning_gpt.errors import CallError
from lightning_gpt.studies.report import plots
from lightning_gpt.studies.report.document import Block, Findings, Heading, Picture
from lightning_gpt.studies.report.fits import Line, PowerLaw, fit_line, fit_power
from lightning_gpt.studies.report.groups import groups
from lightning_gpt.studies.report.quantity import Quantity
from lightning_gpt.studies.report.results import StudyResults
from lightning_gpt.studies.report.sections.base import Section, capital, file_name
from lightning_gpt.studies.spec.measures import number_text
from lightning_gpt.studies.spec.study import Study

_FITS_FROM = 0.99
_FEW = 100


@dataclass(frozen=True)
class Fit(Section):
    """One point per finished cell, and the least-squares fit.

    Args:
        x: A measure, an axis, a model or data option, or a product of these: ``n_layer * block_size * dim``.
        y: The same, for the vertical axis.
        kind: ``linear``, or ``power`` for a power law: a line in the logarithms.
        claim: A published claim; the report states whether the fit agrees with it (R² of at least 0.99).
    """

    x: str
    y: str
    kind: Literal["linear", "power"] = "linear"
    claim: str = ""

    def check(self, study: Study) -> None:
        if self.kind not in ("linear", "power"):
            raise CallError(f"report: fit of {self.y} has kind {self.kind!r}; it must be linear or power")
        for text in (self.x, self.y):
            Quantity(text).check(study)

    def blocks(self, results: StudyResults) -> list[Block]:
        x, y = Quantity(self.x), Quantity(self.y)
        figure, (ax,) = plots.new_figure()
        shown = [group for group in groups(results) if group.results]
        every: list[tuple[float, float]] = []
        for group, look in zip(shown, plots.looks_of(shown), strict=True):
            pairs = [(x.of(result), y.of(result)) for result in group.results]
            points = [(a, b) for a, b in pairs if a is not None and b is not None]
            every += points
            if points:
                style = {"color": look.color, "marker": look.marker, "linestyle": "", "markersize": 6}
                ax.plot(*zip(*points, strict=True), label=group.label, **style)  # type: ignore[arg-type]
        if not every:
            return []
        xs, ys = [a for a, _ in every], [b for _, b in every]
        found = fit_line(xs, ys) if self.kind == "linear" else fit_power(xs, ys)
        if found is not None:
            grid = np.geomspace(min(xs), max(xs), 100) if self.kind == "power" else np.linspace(min(xs), max(xs), 2)
            ax.plot(grid, [found.at(value) for value in grid], color="#444444", linewidth=1.2, zorder=0)
        if self.kind == "power":
            plots.log_where_far(ax, xs, ys)
        elif max(xs) <= _FEW and all(value == int(value) for value in xs):
            plots.whole_numbers(ax)
        plots.readable_numbers(ax)
        ax.set(xlabel=x.title, ylabel=y.title)
        plots.legend(figure, [ax], len(shown))
        caption = f"{capital(y.label)} against {x.label}: one point per cell (n = {len(every)}), and the fit."
        return [
            Heading(f"{capital(y.label)} against {x.label}: {'a line' if self.kind == 'linear' else 'a power law'}"),
            Findings([self._sentence(found, xs)]),
            Picture(file_name("fit", self.y, self.x), figure, caption),
        ]

    def _sentence(self, found: Line | PowerLaw | None, xs: Sequence[float]) -> str:
        x, y = Quantity(self.x), Quantity(self.y)
        if found is None:
            return (
                f"{capital(y.label)} against {x.label}: not fitted, because a fit needs finished cells at three "
                f"different values (there are {len(set(xs))})."
            )
        law = isinstance(found, PowerLaw)
        shape, not_shape = ("a power law", "not a power law") if law else ("linear", "not linear")
        fits = found.r2 >= _FITS_FROM
        verdict = f"{shape} (R² is at least {_FITS_FROM})" if fits else f"{not_shape} (R² is below {_FITS_FROM})"
        r2 = f"R² = {found.r2:.4f}{' of the logarithms' if law else ''} over {found.n} cells"
        if isinstance(found, PowerLaw):
            sentence = f"{y.title} = {number_text(found.factor)} · ({x.label})^{found.exponent:.4f}, {r2}: {verdict}."
        else:
            formula = f"{number_text(found.intercept)} + {number_text(found.slope)} · {x.label}"
            sentence = f"{y.title} = {formula} (intercept and slope), {r2}: {verdict}."
        if self.claim:
            sentence += f" {'Agreeing' if fits else 'Not agreeing'}: {self.claim}."
        return capital(sentence)
