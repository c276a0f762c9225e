"""The coordinate check: whether the size of activations depends on the model's width."""

from collections.abc import Mapping
from dataclasses import dataclass

from lightning_gpt.errors import CallError
from lightning_gpt.studies.report import plots
from lightning_gpt.studies.report.chart import new_chart
from lightning_gpt.studies.report.diagnostics import diagnostic
from lightning_gpt.studies.report.document import Block, Findings, Heading, Picture, Table
from lightning_gpt.studies.report.estimates import LEVEL, SeedSpread, spread
from lightning_gpt.studies.report.fits import PowerLaw, fit_power
from lightning_gpt.studies.report.groups import layer_values
from lightning_gpt.studies.report.results import StudyResults
from lightning_gpt.studies.report.sections.base import Section, capital, file_name
from lightning_gpt.studies.run.result import CellResult
from lightning_gpt.studies.spec.cells import Cell, value_at
from lightning_gpt.studies.spec.measures import number_text
from lightning_gpt.studies.spec.study import Study

_WIDTH = "model.init_args.dim"
_MUP = "model.init_args.optimization.mup"
_FLAT = 0.25
"""Slopes up to this, of either sign, count as flat: growth that μP prevents has a slope of 0.5 or more."""

_Wide = dict[int, list[CellResult]]
"""Finished cells by width."""


@dataclass(frozen=True)
class Coordinates(Section):
    """A diagnostic against the width, on log axes with one line per layer; one plot per parametrisation.

    A parametrisation is the standard one, or μP with a base width. Yang et al. 2022 (2203.03466), appendix D.1: under
    μP the size of activations after a few steps does not depend on the width; otherwise some grow with it, and a
    learning rate found at one width does not suit another.

    Args:
        diagnostic: The diagnostic of a layer, such as ``rms`` or ``logit_rms``.
    """

    diagnostic: str

    def check(self, study: Study) -> None:
        widths: dict[str, set[int]] = {}
        for cell in study.cells:
            width = value_at(cell.config, _WIDTH)
            if not isinstance(width, int):
                raise CallError(f"report: coordinates needs {_WIDTH} in every cell, but {cell.name} does not set it")
            widths.setdefault(_parametrisation(cell), set()).add(width)
        for name, found in widths.items():
            if len(found) < 3:
                raise CallError(f"report: coordinates needs at least three widths, but {name} has {sorted(found)}")

    def blocks(self, results: StudyResults) -> list[Block]:
        found: dict[str, _Wide] = {}
        for result in results.finished:
            if layer_values(result, self.diagnostic):
                width = int(value_at(result.cell.config, _WIDTH))
                found.setdefault(_parametrisation(result.cell), {}).setdefault(width, []).append(result)
        if not found:
            return []
        what = diagnostic(self.diagnostic)
        sizes = {name: self._sizes(wide) for name, wide in found.items()}
        laws = {name: self._laws(wide, first=False) for name, wide in found.items()}
        starts = {name: self._laws(wide, first=True) for name, wide in found.items()}
        chart = new_chart(len(found))
        axes = chart.axes
        for (name, layers), ax in zip(sizes.items(), axes, strict=True):
            looks = plots.looks(len(layers), ordered=True)
            for (layer, points), look in zip(layers.items(), looks, strict=True):
                plots.draw_spreads(chart, ax, list(points), list(points.values()), look, _layer_name(layer, what.of))
            ax.set(xscale="log", yscale="log", xlabel="width", title=name)
            ax.set_xticks(list(found[name]), [f"{width:,}" for width in found[name]])
            ax.minorticks_off()
        axes[0].set_ylabel(what.title)
        limits = [limit for ax in axes for limit in ax.get_ylim()]
        for ax in axes:
            ax.set_ylim(min(limits), max(limits))
        chart.legend(max(map(len, sizes.values())))
        every = [each for layers in sizes.values() for points in layers.values() for each in points.values()]
        seeds = plots.seeds_text(every, "one dot per seed")
        caption = f"{capital(what.title)} ({what.meaning}) after training against the width: {seeds}."
        return [
            Heading(f"{capital(what.title)} against the width"),
            self._findings([sentence for name in found for sentence in self._sentences(name, laws[name])]),
            Picture(file_name("coordinates", self.diagnostic), chart, caption),
            self._table(sizes, laws, starts),
        ]

    def _sizes(self, wide: _Wide) -> dict[int, dict[int, SeedSpread]]:
        """The last figure of each layer at each width, over the seeds: by layer, then by width."""
        layers: dict[int, dict[int, SeedSpread]] = {}
        for width, results in sorted(wide.items()):
            series = [layer_values(result, self.diagnostic) for result in results]
            for layer, values in enumerate(zip(*series, strict=False)):
                known = spread(values)
                if known is not None:
                    layers.setdefault(layer, {})[width] = known
        return layers

    def _laws(self, wide: _Wide, *, first: bool) -> dict[int, PowerLaw | None]:
        """The power law of the width that fits each layer best, over all cells."""
        points: dict[int, list[tuple[float, float]]] = {}
        for width, results in wide.items():
            for result in results:
                for layer, value in enumerate(layer_values(result, self.diagnostic, first=first)):
                    if value is not None:
                        points.setdefault(layer, []).append((width, value))
        return {layer: fit_power(*zip(*pairs, strict=True)) for layer, pairs in sorted(points.items())}

    def _findings(self, sentences: list[str]) -> Findings:
        return Findings(sentences, " ".join(sentences))

    def _sentences(self, name: str, laws: Mapping[int, PowerLaw | None]) -> list[str]:
        known = {layer: law for layer, law in laws.items() if law is not None}
        if not known:
            return []
        what = diagnostic(self.diagnostic)
        # an interval for each layer that together hold all slopes at the report's level (Bonferroni)
        ends = {layer: _interval(law, LEVEL / len(known)) for layer, law in known.items()}
        most = max(known, key=lambda layer: abs(known[layer].exponent))
        low, high = ends[most]
        furthest = (
            f"steepest slope: {known[most].exponent:+.2f} [{low:+.2f}, {high:+.2f}], {_layer_name(most, what.of)}"
        )
        moving = [layer for layer, (low, high) in ends.items() if low > _FLAT or high < -_FLAT]
        if all(low >= -_FLAT and high <= _FLAT for low, high in ends.values()):
            verdict = f"does not depend on the width in any layer ({furthest}; up to ±{_FLAT} counts as flat)"
        elif moving:
            ups = {known[layer].exponent > 0 for layer in moving}
            way = "grows" if ups == {True} else "shrinks" if ups == {False} else "grows or shrinks"
            verdict = f"{way} with the width ({furthest}; beyond ±{_FLAT} in {len(moving)} of {len(known)} layers)"
        else:
            whether = f"Whether {what.title} after training ({name}) depends on the width is open"
            return [f"{whether}: these seeds and widths cannot tell ({furthest}; up to ±{_FLAT} counts as flat)."]
        return [f"{capital(what.title)} after training ({name}) {verdict}."]

    def _table(
        self,
        sizes: Mapping[str, dict[int, dict[int, SeedSpread]]],
        laws: Mapping[str, dict[int, PowerLaw | None]],
        starts: Mapping[str, dict[int, PowerLaw | None]],
    ) -> Table:
        what = diagnostic(self.diagnostic)
        widths = sorted({width for layers in sizes.values() for points in layers.values() for width in points})
        rows = []
        for name, layers in sizes.items():
            for layer, points in layers.items():
                values = [number_text(points[width].mean) if width in points else "–" for width in widths]
                slopes = [_slope(each[name].get(layer)) for each in (laws, starts)]
                rows.append([f"{name}, {_layer_name(layer, what.of)}", *values, *slopes])
        header = ["parametrisation, layer", *(f"width {width:,}" for width in widths), "slope", "slope before training"]
        caption = (
            f"{capital(what.title)} after training, mean over the seeds; slope: exponent of the width, with its "
            f"{1 - LEVEL:.0%} interval."
        )
        return Table(header, rows, caption)


def _parametrisation(cell: Cell) -> str:
    mup = value_at(cell.config, _MUP)
    return "standard" if mup is None else f"μP, base {mup['base_dim']}"


def _layer_name(layer: int, of: str) -> str:
    if of == "stream":
        return "embedding" if layer == 0 else f"layer {layer}"
    return f"block {layer}"


def _slope(law: PowerLaw | None) -> str:
    if law is None:
        return "–"
    return f"{round(law.exponent, 3) + 0.0:+.3f}{f' ± {law.half_width:.3f}' if law.half_width > 5e-4 else ''}"


def _interval(law: PowerLaw, level: float) -> tuple[float, float]:
    half = law.half_width_at(level)
    return law.exponent - half, law.exponent + half
