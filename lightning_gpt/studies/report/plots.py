"""The plots of a report: dark text on white, colours safe for the colour-blind, and a marker per line."""

import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

from lightning_gpt.studies.report.estimates import LEVEL, SeedSpread
from lightning_gpt.studies.report.groups import Group

# Okabe & Ito 2008, without its yellow, which is hard to see on white
_DISTINCT = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#7F7F7F")
_MARKERS = "osD^vPX*<>"
_DASHES = ("-", "--", ":", "-.")
_HALF_A_DECADE = 10**0.5
_FEW_SEEDS = 5
"""Up to so many seeds are drawn one by one: an interval of fewer says more about Student's t than about them."""
THEIRS = "#8A6D3B"
"""The colour of published figures of others."""

_STYLE: Any = {
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.8,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "svg.hashsalt": "study",  # the same plot gives the same file
}


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
    numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
    return looks(len(groups), ordered=numbers and len(values) == len(groups))


def new_figure(columns: int = 1, height: float = 3.9, width: float = 6.4) -> tuple[Figure, list[Axes]]:
    """A figure with ``columns`` plots side by side; sizes in inches."""
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(width if columns == 1 else 4.9 * columns, height), layout="constrained")
        axes = figure.subplots(1, columns, squeeze=False)[0]
    return figure, list(axes)


def draw_spreads(ax: Axes, x: Sequence[float], spreads: Sequence[SeedSpread], look: Look, label: str) -> None:
    """A line through the means, with one dot per seed where they are few, and the means' intervals elsewhere."""
    means = [each.mean for each in spreads]
    style = {"color": look.color, "marker": look.marker, "linestyle": look.dash, "markersize": 5, "linewidth": 1.7}
    if _few(spreads):
        for place, each in zip(x, spreads, strict=True):
            seeds = {"marker": "o", "linestyle": "", "markersize": 4, "alpha": 0.45, "markeredgewidth": 0}
            ax.plot([place] * each.n, each.values, color=look.color, **seeds)  # type: ignore[arg-type]
        ax.plot(x, means, label=label, **{**style, "marker": "_", "markersize": 13, "markeredgewidth": 2})  # type: ignore[arg-type]
        return
    widths = [each.half_width or 0.0 for each in spreads]
    ax.errorbar(x, means, yerr=widths, capsize=3, label=label, **style)  # type: ignore[arg-type]


def draw_band(ax: Axes, x: Sequence[float], spreads: Sequence[SeedSpread], look: Look, label: str) -> None:
    """A line through the means, with a band from the lowest to the highest seed where they are few, and of the means'
    intervals elsewhere; for many points."""
    means = [each.mean for each in spreads]
    if _few(spreads):
        low, high = [min(each.values) for each in spreads], [max(each.values) for each in spreads]
    else:
        low = [each.mean - (each.half_width or 0.0) for each in spreads]
        high = [each.mean + (each.half_width or 0.0) for each in spreads]
    ax.fill_between(x, low, high, color=look.color, alpha=0.18, linewidth=0)
    style = {"marker": look.marker, "linestyle": look.dash, "markersize": 4, "linewidth": 1.7}
    ax.plot(x, means, color=look.color, label=label, **style)  # type: ignore[arg-type]


def seeds_text(spreads: Iterable[SeedSpread], few: str) -> str:
    """What a caption says of the seeds: of one, none; of few, as ``few`` has it; of many, their intervals."""
    shown = list(spreads)
    most = max((each.n for each in shown), default=1)
    if most == 1:
        return "one seed"
    return f"mean, and {few if _few(shown) else f'its {1 - LEVEL:.0%} confidence interval'}"


def _few(spreads: Sequence[SeedSpread]) -> bool:
    return max((each.n for each in spreads), default=1) <= _FEW_SEEDS


def new_dot_rows(rows: Mapping[str, Sequence[float]]) -> tuple[Figure, Axes]:
    """A figure with one row per label, the first at the top, and one dot per value."""
    figure, (ax,) = new_figure(height=1.2 + 0.42 * len(rows), width=7.2)
    for row, values in enumerate(rows.values()):
        ax.plot(values, [row] * len(values), "o", color=_DISTINCT[0], alpha=0.7, markersize=6)
    ax.set_yticks(range(len(rows)), list(rows))
    ax.set_ylim(len(rows) - 0.5, -0.5)
    return figure, ax


def whole_numbers(ax: Axes) -> None:
    """Put the horizontal axis's ticks at whole numbers."""
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))


def log_where_far(ax: Axes, xs: Sequence[float], ys: Sequence[float]) -> None:
    """Make each axis logarithmic whose values are positive and span more than half a decade."""
    for values, set_scale in ((xs, ax.set_xscale), (ys, ax.set_yscale)):
        if 0 < _HALF_A_DECADE * min(values) < max(values):
            set_scale("log", subs=[2, 5])


def readable_numbers(ax: Axes) -> None:
    """Label ticks as 200,000 and 0.25, few enough that they do not overlap."""
    for axis in (ax.xaxis, ax.yaxis):
        if axis.get_scale() == "log":
            axis.set_minor_formatter(FuncFormatter(_tick))
        elif isinstance(locator := axis.get_major_locator(), MaxNLocator):
            locator.set_params(nbins=6)
        axis.set_major_formatter(FuncFormatter(_tick))


def _tick(value: float, position: int | None = None) -> str:
    return f"{int(value):,}" if value == int(value) else f"{value:g}"


def legend(figure: Figure, axes: Sequence[Axes], count: int) -> None:
    """One legend for all plots of a figure: inside the plot where short, beside the plots where long."""
    handles, labels = axes[0].get_legend_handles_labels()
    if count > 1 and len(axes) == 1 and count <= 5:
        axes[0].legend()
    elif count > 1:
        figure.legend(handles, labels, loc="outside right upper")


def files_of(figure: Figure) -> Iterable[tuple[str, bytes]]:
    """The figure as ``png`` and ``svg`` files; equal figures give equal bytes."""
    with matplotlib.rc_context(_STYLE):
        for kind, metadata in (("png", {"Software": None}), ("svg", {"Date": None})):
            file = io.BytesIO()
            figure.savefig(file, format=kind, dpi=150, metadata=metadata)
            yield kind, file.getvalue()
