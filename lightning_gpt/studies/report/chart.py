"""A plot with the numbers drawn in it: sizes, style and files."""

import csv
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

COLUMN, PAGE = 3.4, 7.0
"""Widths in inches: of a column of a two-column paper, and of both together, which is also a page of A4's text."""

_STYLE: Any = {
    "font.size": 8,
    "axes.titlesize": 8.5,
    "axes.labelsize": 8,
    "xtick.labelsize": 7.5,
    "ytick.labelsize": 7.5,
    "axes.linewidth": 0.6,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "legend.fontsize": 7.5,
    "svg.hashsalt": "study",  # the same plot gives the same file
}
_DPI = 220
_LETTER, _HANDLE, _LINE = 0.062, 0.5, 0.16
"""In inches, of a legend: the width of a letter, of what stands before a label, and the height of a line."""

Kind = Literal["seed", "mean", "low", "high", "form", "published"]
"""What a drawn point is: a run, a mean over the seeds, an end of its band, a fitted form, a figure of others."""


@dataclass
class Chart:
    """A figure, and what is drawn in it.

    Args:
        figure: The figure.
        axes: Its plots, from left to right.
        points: What was drawn: plot, line, kind, x and y of each point; y is None where only x means something.
    """

    figure: Figure
    axes: list[Axes]
    points: list[tuple[Axes, str, Kind, float, float | None]] = field(default_factory=list)

    def note(self, ax: Axes, line: str, kind: Kind, xs: Iterable[float], ys: Iterable[float] | None = None) -> None:
        """Note points of ``line`` that are drawn in ``ax``, for the plot's CSV."""
        across = list(xs)
        up = [None] * len(across) if ys is None else list(ys)
        self.points += [(ax, line, kind, x, y) for x, y in zip(across, up, strict=True)]

    def legend(self, labels: int, ax: Axes | None = None) -> None:
        """One legend for all plots, or one for ``ax``: inside a single plot of two lines, else below the plots."""
        with matplotlib.rc_context(_STYLE):
            if ax is not None or (labels == 2 and len(self.axes) == 1):
                (ax or self.axes[0]).legend(handlelength=1.6, labelspacing=0.3)
            elif labels > 1:
                handles, names = self.axes[0].get_legend_handles_labels()
                width, height = self.figure.get_size_inches()
                columns = max(1, min(labels, int(width / (_HANDLE + _LETTER * max(map(len, names))))))
                self.figure.set_size_inches(width, height + _LINE * -(-labels // columns))
                self.figure.legend(handles, names, loc="outside lower center", ncols=columns, columnspacing=1.2)

    def to_csv(self) -> str:
        """What is drawn, one row per point: its line, its kind, x and y under the axes' titles."""
        text = io.StringIO()
        table = csv.writer(text, lineterminator="\n")
        first, flat = self.axes[0], all(y is None for *_, y in self.points)
        many = len(self.axes) > 1
        titles = [first.get_xlabel() or "x"] + ([] if flat else [first.get_ylabel() or "y"])
        table.writerow([*(["plot"] if many else []), "line", "kind", *titles])
        for ax, line, kind, x, y in self.points:
            name = [ax.get_title() or ax.get_ylabel()] if many else []
            numbers = [x] if flat else [x, y]
            table.writerow([*name, line, kind, *("" if each is None else repr(float(each)) for each in numbers)])
        return text.getvalue()

    def files(self) -> Iterable[tuple[str, bytes]]:
        """The plot as ``png`` and ``svg`` and its numbers as ``csv``; equal plots give equal bytes."""
        with matplotlib.rc_context(_STYLE):
            for ax in self.axes:
                ax.title.set_fontsize(_STYLE["axes.titlesize"])  # set_title reads the style of its own moment
            for kind, metadata in (("png", {"Software": None}), ("svg", {"Date": None})):
                file = io.BytesIO()
                self.figure.savefig(file, format=kind, dpi=_DPI, metadata=metadata)
                yield kind, file.getvalue()
        yield "csv", self.to_csv().encode()


def new_chart(columns: int = 1, height: float = 2.4) -> Chart:
    """A chart of ``columns`` plots side by side; one is as wide as a column, more share the page.

    Args:
        columns: How many plots.
        height: Its height in inches, without a legend below the plots.
    """
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(COLUMN if columns == 1 else PAGE, height), layout="constrained")
        axes = figure.subplots(1, columns, squeeze=False)[0]
        for ax in axes:  # some titles of measures are longer than the axis
            ax.xaxis.label.set_wrap(True)
            ax.yaxis.label.set_wrap(True)
    return Chart(figure, list(axes))


def new_dot_rows(rows: Sequence[str]) -> tuple[Chart, Axes]:
    """A chart with one row per label, the first at the top, as high as the rows need."""
    names = [_wrapped(label) for label in rows]
    lines = sum(1 + 0.55 * name.count("\n") for name in names)
    chart = new_chart(height=0.6 + 0.19 * max(lines, 3))
    ax = chart.axes[0]
    ax.set_yticks(range(len(names)), names)
    ax.set_ylim(len(names) - 0.5, -0.5)
    return chart, ax


def _wrapped(label: str, most: int = 26) -> str:
    """``label`` on two lines or more where it would leave no room for the plot."""
    lines = [""]
    for word in label.split():
        if lines[-1] and len(lines[-1]) + 1 + len(word) > most:
            lines.append(word)
        else:
            lines[-1] = f"{lines[-1]} {word}".strip()
    return "\n".join(lines)
