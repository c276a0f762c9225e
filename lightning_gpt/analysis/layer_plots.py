"""Plots of the layer diagnostics: layer by step, layer by layer, and spectra.

Each is as large as a card of TensorBoard's, which scales larger ones down until their labels cannot be read.
"""

import textwrap

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.patches import Circle
from numpy.typing import NDArray
from torch import Tensor

from lightning_gpt.analysis.layer_diagnostics import Diagnostic, Value, one_value

_MOST_LABELS = 8
_WIDTH, _HEIGHT = 3.4, 2.2
"""The size of a card in inches, at matplotlib's 100 pixels per inch."""
_BLOCKS = 4


class Heatmaps:
    """Diagnostics over training: one column per validation, one row per layer, the first at the bottom.

    Plots with the same layers and steps share their axes, because making axes takes as long as drawing them.
    """

    def __init__(self) -> None:
        self._made: dict[tuple[bool, int, tuple[int, ...]], tuple[Figure, Axes, AxesImage]] = {}

    def draw(self, diagnostic: Diagnostic, steps: list[int], figures: list[list[Value]]) -> Figure:
        """The plot of one diagnostic; the figure is valid only until the next call.

        Args:
            diagnostic: What to plot.
            steps: The optimizer step of each column, in increasing order.
            figures: For each step, the value of each layer; missing values are grey.
        """
        grid = np.array([[one_value(value) for value in layers] for layers in figures], dtype=float).T
        key = (diagnostic.of == "stream", len(grid), tuple(steps))
        if key not in self._made:
            self._made[key] = self._axes(grid, steps, stream=diagnostic.of == "stream")
        figure, ax, image = self._made[key]
        image.set_data(np.ma.masked_invalid(grid))
        image.autoscale()
        ax.set_title(textwrap.fill(diagnostic.title, 40), fontsize=9)
        for old in [*figure.texts, *figure.images]:
            old.remove()
        _colour_bar(figure, ax, image)
        return figure

    def _axes(self, grid: NDArray[np.float64], steps: list[int], *, stream: bool) -> tuple[Figure, Axes, AxesImage]:
        figure, ax = _figure(_WIDTH, _HEIGHT)
        ax.set_facecolor("lightgrey")
        image = ax.imshow(grid, origin="lower", aspect="auto", interpolation="nearest", cmap="viridis")
        shown = _spread(len(steps))
        ax.set_xticks(shown, [f"{steps[column]:,}" for column in shown], fontsize=9)
        _label_layers(ax, len(grid), stream, axis="y")
        ax.set_xlabel("optimizer step", fontsize=9)
        return figure, ax, image


def cka_heatmap(matrix: Tensor, step: int) -> Figure:
    """A plot of linear CKA between every two layers of the stream, ``(n_layer + 1, n_layer + 1)``, from 0 to 1."""
    figure, ax = _figure(_WIDTH, 2.9)
    image = ax.imshow(matrix.numpy(), origin="lower", vmin=0, vmax=1, cmap="magma")
    _label_layers(ax, len(matrix), True, axis="y")
    _label_layers(ax, len(matrix), True, axis="x")
    ax.set_title(f"linear CKA between layers, step {step:,}", fontsize=9)
    _colour_bar(figure, ax, image)
    return figure


def value_spectra(eigenvalues: list[Tensor | None], step: int) -> dict[str, Figure]:
    """The eigenvalues of each block's ``W_V W_O`` in the complex plane, one colour per head, four blocks a picture.

    Inside the circle ``|1 + λ| = 1`` attention sharpens, outside it smooths (2401.04301); near 0 the circle is a
    vertical line.

    Args:
        eigenvalues: ``(n_head, head_dim)`` complex of each block, or None for a block without value projections.
        step: The optimizer step.

    Returns:
        The pictures by the blocks in them: ``blocks_00_03``, ``blocks_04_07``, …
    """
    sizes = [float(found.abs().nan_to_num(0.0).max()) for found in eigenvalues if found is not None]
    limit = 1.1 * max(sizes, default=0.0) or 1.0
    found = {}
    for first in range(0, len(eigenvalues), _BLOCKS):
        shown = dict(enumerate(eigenvalues))
        blocks = {block: shown[block] for block in range(first, min(first + _BLOCKS, len(eigenvalues)))}
        found[f"blocks_{min(blocks):02}_{max(blocks):02}"] = _spectra_of(blocks, limit, step)
    return found


def _spectra_of(blocks: dict[int, Tensor | None], limit: float, step: int) -> Figure:
    figure = Figure(figsize=(_WIDTH, _WIDTH))
    figure.subplots_adjust(left=0.15, right=0.96, bottom=0.08, top=0.86, hspace=0.35, wspace=0.3)
    axes = figure.subplots(2, 2).flat
    for ax in axes[len(blocks) :]:
        ax.set_axis_off()
    for ax, (block, of_block) in zip(axes, blocks.items(), strict=False):
        ax.add_patch(Circle((-1, 0), 1, fill=False, edgecolor="grey", linewidth=0.8))
        for head, of_head in enumerate([] if of_block is None else of_block):
            ax.plot(of_head.real, of_head.imag, ".", markersize=3, color=f"C{head % 10}")
        ax.set_xlim(-limit, limit)
        ax.set_ylim(-limit, limit)
        ax.set_title(f"block {block}", fontsize=10, pad=3)
        ax.locator_params(nbins=3)
        ax.tick_params(labelsize=8)
    figure.suptitle(f"eigenvalues of $W_V W_O$ by head, step {step:,}", fontsize=9)
    return figure


def _figure(width: float, height: float) -> tuple[Figure, Axes]:
    """A figure with one axes and fixed margins: computing a layout would take longer than drawing."""
    figure = Figure(figsize=(width, height))
    left, bottom, top = 0.62 / width, 0.48 / height, 1 - 0.4 / height
    return figure, figure.add_axes((left, bottom, 1 - left - 0.86 / width, top - bottom))


def _colour_bar(figure: Figure, ax: Axes, image: AxesImage) -> None:
    """A colour bar with its smallest and largest value; matplotlib's own, with its own axes, takes longer to draw."""
    box, (low, high) = ax.get_position(), image.get_clim()
    x, y, height = box.x1 * figure.bbox.width + 10, box.y0 * figure.bbox.height, box.height * figure.bbox.height
    colours = image.cmap(np.linspace(1, 0, int(height)))[:, None].repeat(12, axis=1)
    figure.figimage(colours, xo=int(x), yo=int(y))
    for value, place, side in ((high, box.y1, "top"), (low, box.y0, "bottom")):
        figure.text((x + 16) / figure.bbox.width, place, f"{value:.3g}", fontsize=9, va=side)


def _spread(count: int) -> list[int]:
    """At most :data:`_MOST_LABELS` of ``count`` positions, evenly spaced from the first."""
    return list(range(0, count, -(-count // _MOST_LABELS)))


def _label_layers(ax: Axes, layers: int, stream: bool, axis: str) -> None:
    shown = _spread(layers)
    names, title = ["emb." if stream and layer == 0 else str(layer) for layer in shown], "layer" if stream else "block"
    if axis == "y":
        ax.set_yticks(shown, names, fontsize=9)
        ax.set_ylabel(title, fontsize=9, labelpad=1)
    else:
        ax.set_xticks(shown, names, fontsize=9)
        ax.set_xlabel(title, fontsize=9, labelpad=1)
