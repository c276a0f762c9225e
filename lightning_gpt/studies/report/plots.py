"""What is drawn in a report's plots: dark text on white, colours safe for the colour-blind, a marker per line."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.ticker import FuncFormatter, MaxNLocator

from lightning_gpt.studies.report.chart import Chart
from lightning_gpt.studies.report.estimates import LEVEL, SeedSpread
from lightning_gpt.studies.report.groups import Group
from lightning_gpt.studies.spec.cells import is_number

# Okabe & Ito 2008, without its yellow, which is hard to see on white
_DISTINCT = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#7F7F7F")
_MARKERS = "osD^vPX*<>"
_DASHES = ("-", "--", ":", "-.")
_HALF_A_DECADE = 10**0.5
_LONG_NUMBER = 1e4
_FEW_SEEDS = 5
"""Up to so many seeds are drawn one by one: an interval of fewer says more about Student's t than about them."""
THEIRS = "#8A6D3B"
"""The colour of published figures of others."""


@dataclass(frozen=True)
class Look:
    """The look of a line in a plot."""

    color: str | tuple[float, ...]
    marker: str
    dash: str


def looks(count: int, *, ordered: bool) -> list[Look]:
    """A look for each of ``count`` lines: shades from dark to light where ordered, otherwise distinct colours."""
    shades = colormaps["viridis"]
    made = []
    for number in range(count):
        color: str | tuple[float, ...] = _DISTINCT[number % len(_DISTINCT)]
        if ordered or count > len(_DISTINCT):
            color = shades(0.85 * number / max(1, count - 1))
        dash = "-" if ordered else _DASHES[number // len(_DISTINCT) % len(_DASHES)]
        made.append(Look(color, _MARKERS[number % len(_MARKERS)], dash))
    return made


def looks_of(groups: Sequence[Group]) -> list[Look]:
    """A look for each group; ordered where the groups differ on one axis of numbers."""
    values = [value for group in groups for value in group.settings.values()]
    numbers = all(map(is_number, values))
    return looks(len(groups), ordered=numbers and len(values) == len(groups))


def draw_spreads(
    chart: Chart, ax: Axes, x: Sequence[float], spreads: Sequence[SeedSpread], look: Look, label: str
) -> None:
    """A line through the means, with one dot per seed where they are few, and the means' intervals elsewhere."""
    means = [each.mean for each in spreads]
    style = {"color": look.color, "marker": look.marker, "linestyle": look.dash, "markersize": 3.5, "linewidth": 1.2}
    chart.note(ax, label, "mean", x, means)
    if _few(spreads):
        for place, each in zip(x, spreads, strict=True):
            seeds = {"marker": "o", "linestyle": "", "markersize": 2.8, "alpha": 0.45, "markeredgewidth": 0}
            ax.plot([place] * each.n, each.values, color=look.color, **seeds)  # type: ignore[arg-type]
            chart.note(ax, label, "seed", [place] * each.n, each.values)
        ax.plot(x, means, label=label, **{**style, "marker": "_", "markersize": 8, "markeredgewidth": 1.5})  # type: ignore[arg-type]
        return
    widths = [each.half_width or 0.0 for each in spreads]
    ax.errorbar(x, means, yerr=widths, capsize=2, label=label, **style)  # type: ignore[arg-type]
    chart.note(ax, label, "low", x, [mean - width for mean, width in zip(means, widths, strict=True)])
    chart.note(ax, label, "high", x, [mean + width for mean, width in zip(means, widths, strict=True)])


def draw_band(
    chart: Chart, ax: Axes, x: Sequence[float], spreads: Sequence[SeedSpread], look: Look, label: str
) -> None:
    """A line through the means, with a band from the lowest to the highest seed where they are few, and of the means'
    intervals elsewhere; for many points."""
    means = [each.mean for each in spreads]
    if _few(spreads):
        low, high = [min(each.values) for each in spreads], [max(each.values) for each in spreads]
    else:
        low = [each.mean - (each.half_width or 0.0) for each in spreads]
        high = [each.mean + (each.half_width or 0.0) for each in spreads]
    ax.fill_between(x, low, high, color=look.color, alpha=0.18, linewidth=0)
    style = {"marker": look.marker, "linestyle": look.dash, "markersize": 3, "linewidth": 1.2}
    ax.plot(x, means, color=look.color, label=label, **style)  # type: ignore[arg-type]
    chart.note(ax, label, "mean", x, means)
    chart.note(ax, label, "low", x, low)
    chart.note(ax, label, "high", x, high)


def seeds_text(spreads: Iterable[SeedSpread], few: str) -> str:
    """What a caption says of the seeds: of one, none; of few, as ``few`` has it; of many, their intervals."""
    shown = list(spreads)
    most = max((each.n for each in shown), default=1)
    if most == 1:
        return "one seed"
    return f"mean, and {few if _few(shown) else f'its {1 - LEVEL:.0%} confidence interval'}"


def _few(spreads: Sequence[SeedSpread]) -> bool:
    return max((each.n for each in spreads), default=1) <= _FEW_SEEDS


def draw_rows(chart: Chart, ax: Axes, rows: Mapping[str, Sequence[float]], *, means: bool) -> None:
    """One dot per value in the row of its label, and a bar at each row's mean where asked for."""
    for row, (label, values) in enumerate(rows.items()):
        ax.plot(values, [row] * len(values), "o", color=_DISTINCT[0], alpha=0.6, markersize=4, markeredgewidth=0)
        chart.note(ax, label, "seed", values)
        if means:
            mean = fmean(values)
            ax.plot([mean], [row], "|", color="#1a1a1a", markersize=9, markeredgewidth=1.5)
            chart.note(ax, label, "mean", [mean])


def whole_numbers(ax: Axes) -> None:
    """Put the horizontal axis's ticks at whole numbers."""
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))


def log_where_far(ax: Axes, xs: Sequence[float], ys: Sequence[float]) -> None:
    """Make each axis logarithmic whose values are positive and span more than half a decade."""
    for values, set_scale in ((xs, ax.set_xscale), (ys, ax.set_yscale)):
        if 0 < _HALF_A_DECADE * min(values) < max(values):
            near = max(values) < 10 * min(values)
            set_scale("log", subs=[2, 3, 5, 7] if near else [2, 5])


def readable_numbers(ax: Axes) -> None:
    """Label ticks as 2,000, 20k, 2M and 0.25, few enough that they do not overlap in a column."""
    for axis in (ax.xaxis, ax.yaxis):
        readable_axis(axis)


def readable_axis(axis: Axis) -> None:
    """The same for one axis."""
    if axis.get_scale() == "log":
        axis.set_minor_formatter(FuncFormatter(_tick))
        axis.set_tick_params(which="both", length=2.5, pad=2.5, labelsize=7.5)
    elif isinstance(locator := axis.get_major_locator(), MaxNLocator):
        locator.set_params(nbins=5)
    axis.set_major_formatter(FuncFormatter(_tick))


def _tick(value: float, position: int | None = None) -> str:
    for size, sign in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= max(size, _LONG_NUMBER):
            return f"{value / size:g}{sign}"
    return f"{int(value):,}" if value == int(value) else f"{value:g}"
