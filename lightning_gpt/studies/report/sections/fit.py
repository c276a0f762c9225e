"""The forms that describe one quantity against another over all cells: a line, a power law, a saturating law."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np

from lightning_gpt.errors import CallError
from lightning_gpt.studies.report import plots
from lightning_gpt.studies.report.chart import new_chart
from lightning_gpt.studies.report.document import Block, Findings, Heading, Picture, Table
from lightning_gpt.studies.report.estimates import LEVEL
from lightning_gpt.studies.report.fits import POINTS_TO_TELL, Form, Kind, fit_forms, ruled_out
from lightning_gpt.studies.report.groups import groups
from lightning_gpt.studies.report.quantity import Quantity
from lightning_gpt.studies.report.results import StudyResults
from lightning_gpt.studies.report.sections.base import Section, capital, file_name
from lightning_gpt.studies.spec.measures import number_text
from lightning_gpt.studies.spec.study import Study

_FEW = 100
_EXACT = 1e-9
"""Relative distances below this are rounding."""
_NAMES: dict[Kind, str] = {"linear": "a line", "power": "a power law", "saturating": "a power law with an offset"}
_DASHES: dict[Kind, str] = {"linear": "--", "power": "-", "saturating": ":"}


@dataclass(frozen=True)
class Fit(Section):
    """One point per finished cell, and each form by least squares on the logarithms; the forms are compared by AICc.

    Args:
        x: A measure, an axis, a model or data option, or a product of these: ``n_layer * block_size * dim``.
        y: The same, for the vertical axis.
        kind: The form in question: ``linear``, ``power``, or ``saturating``, a power law with an offset.
        claim: A published claim that has this form; the report states whether the cells agree with it.
    """

    x: str
    y: str
    kind: str = "linear"
    claim: str = ""

    def check(self, study: Study) -> None:
        if self.kind not in _NAMES:
            raise CallError(f"report: fit of {self.y} has kind {self.kind!r}; it must be {', '.join(_NAMES)}")
        for text in (self.x, self.y):
            Quantity(text).check(study)

    def blocks(self, results: StudyResults) -> list[Block]:
        x, y = Quantity(self.x), Quantity(self.y)
        chart = new_chart()
        (ax,) = chart.axes
        shown = [group for group in groups(results) if group.results]
        every: list[tuple[float, float]] = []
        for group, look in zip(shown, plots.looks_of(shown), strict=True):
            pairs = [(x.of(result), y.of(result)) for result in group.results]
            points = [(a, b) for a, b in pairs if a is not None and b is not None]
            every += points
            if points:
                style = {"color": look.color, "marker": look.marker, "linestyle": "", "markersize": 4}
                across, up = zip(*points, strict=True)
                ax.plot(across, up, label=group.label, **style)  # type: ignore[arg-type]
                chart.note(ax, group.label, "seed", across, up)
        if not every:
            return []
        xs, ys = [a for a, _ in every], [b for _, b in every]
        forms = fit_forms(xs, ys)
        for form in forms[:2]:
            grid = np.geomspace(min(xs), max(xs), 100)
            style = {"color": "#444444" if form is forms[0] else "#aaaaaa", "linestyle": _DASHES[form.kind]}
            curve = [form.at(value) for value in grid]
            ax.plot(grid, curve, linewidth=1, zorder=0, **style)  # type: ignore[arg-type]
            chart.note(ax, _NAMES[form.kind], "form", grid, curve)
        if self.kind != "linear":
            plots.log_where_far(ax, xs, ys)
        elif max(xs) <= _FEW and all(value == int(value) for value in xs):
            plots.whole_numbers(ax)
        plots.readable_numbers(ax)
        ax.set(xlabel=x.title + x.mark(results), ylabel=y.title + y.mark(results))
        chart.legend(len(shown))
        caption = f"{capital(y.label)} against {x.label}: one point per cell (n = {len(every)})"
        caption += f"; dark: {_NAMES[forms[0].kind]}, pale: {_NAMES[forms[1].kind]}." if forms else "."
        caption += y.warning(results) or x.warning(results)
        blocks: list[Block] = [Heading(f"{capital(y.label)} against {x.label}: which form")]
        why_not = y.untested(results) or x.untested(results)
        blocks.append(self._findings(forms, xs, why_not) if forms else Findings([self._not_fitted(xs, ys)]))
        blocks.append(Picture(file_name("fit", self.y, self.x), chart, caption))
        return [*blocks, self._table(forms, len(every))] if forms else blocks

    def _not_fitted(self, xs: Sequence[float], ys: Sequence[float]) -> str:
        why = f"a fit needs finished cells at three different values (there are {len(set(xs))})"
        if min([*xs, *ys]) <= 0:
            why = "a fit with relative errors needs figures above 0"
        return f"{capital(Quantity(self.y).label)} against {Quantity(self.x).label}: not fitted, because {why}."

    def _findings(self, forms: list[Form], xs: Sequence[float], why_not: str) -> Findings:
        y, x, n = Quantity(self.y), Quantity(self.x), len(xs)
        best = forms[0]
        said = f"{capital(y.label)} against {x.label} is best described by {_NAMES[best.kind]}, {self._formula(best)}"
        said += f" ({_residuals(best.error)}, {n} cells)"
        others = {form.kind: ruled_out(form, forms, n) for form in forms if form is not best}
        excluded = [_NAMES[kind] for kind, out in others.items() if out]
        allowed = [_NAMES[kind] for kind, out in others.items() if not out]
        if n < POINTS_TO_TELL:
            said += f"; {n} cells are too few to rule out {' or '.join(allowed)}"
        else:
            said += f"; ruled out: {', '.join(excluded)}" if excluded else ""
            said += f"; not ruled out: {', '.join(allowed)}" if allowed else ""
        power = next(form for form in forms if form.kind == "power")
        sentences = [f"{said}. As a power law its exponent is {_exponent(power)}."]
        if why_not:
            return Findings([*sentences, why_not])
        if self.claim:
            sentences.append(self._on_claim(forms, n))
            return Findings(sentences, sentences[-1])
        kind = _NAMES[best.kind]
        return Findings(sentences, f"{capital(y.label)} against {x.label} is best described by {kind}.")

    def _on_claim(self, forms: list[Form], n: int) -> str:
        claimed, claim = next((form for form in forms if form.kind == self.kind), None), capital(self.claim)
        if claimed is None or n < POINTS_TO_TELL:
            return f"{claim}; here too few cells were measured to tell."
        name, off = _NAMES[cast(Kind, self.kind)], "exact"
        if claimed.furthest > _EXACT:
            off = f"up to {claimed.furthest:.2%} off the means"
        if ruled_out(claimed, forms, n):
            return f"{claim}; here it is not so: {name} is ruled out, being {off}."
        others = [form for form in forms if form is not claimed and form.kind != "saturating"]
        if all(ruled_out(form, forms, n) for form in others):
            return f"{claim}; so it is here: {name} is {off}."
        rest = " and ".join(_NAMES[form.kind] for form in others if not ruled_out(form, forms, n))
        return f"{claim}; here that is possible, as is {rest}: {name} is {off}."

    def _formula(self, form: Form) -> str:
        x = Quantity(self.x)
        name = x.label if len(x.factors) == 1 and " " not in x.label else f"({x.label})"
        if form.kind == "linear":
            return f"{_number(form.a)} {_signed(form.b)} · {name}"
        if form.kind == "power":
            return f"{_number(form.b)} · {name}^{form.p:.4f}"
        return f"{_number(form.a)} {_signed(form.b)} · {name}^{form.p:.4f}" + (
            f", which levels off at {_number(form.a)}" if form.p < 0 else ""
        )

    def _table(self, forms: list[Form], n: int) -> Table:
        best, rows = forms[0].aicc, []
        weights = np.exp([(best - form.aicc) / 2 for form in forms])
        for form, weight in zip(forms, weights / weights.sum(), strict=True):
            verdict = "best" if form is forms[0] else "ruled out" if ruled_out(form, forms, n) else "possible"
            exponent = "1" if form.kind == "linear" else _exponent(form)
            figures = [_share(form.error), _share(form.furthest), f"{form.aicc - best:.1f}", f"{weight:.3f}", verdict]
            rows.append([_NAMES[form.kind], self._formula(form), exponent, *figures])
        header = ["form", Quantity(self.y).title, f"exponent, {1 - LEVEL:.0%} interval", "residuals", "furthest mean"]
        caption = (
            "Least squares on the logarithms; residuals: root mean square, relative; furthest mean: largest relative "
            "distance from the mean at one value; ΔAICc: Akaike's criterion above the best form's; weight: Akaike's. "
            "A form is ruled out where it is less than a twentieth as likely as the best one."
        )
        return Table([*header, "ΔAICc", "weight", "verdict"], rows, caption)


def _number(value: float) -> str:
    """A fitted number, without what rounding leaves of it; far from 1 in scientific notation."""
    if value and not 1e-6 <= abs(value) < 1e7:
        return f"{value:.4g}"
    return number_text(float(f"{value:.8g}"))


def _signed(value: float) -> str:
    return f"{'-' if value < 0 else '+'} {_number(abs(value))}"


def _residuals(error: float) -> str:
    return "exact" if error < _EXACT else f"residuals {_share(error)}"


def _share(value: float) -> str:
    return "0" if value < _EXACT else f"{value:.2g}" if value < 1e-4 else f"{value:.2%}"


def _exponent(form: Form) -> str:
    return f"{form.p:.4f} [{form.p - form.half_width:.4f}, {form.p + form.half_width:.4f}]"
