"""Plots of attention and of ablations."""

from collections.abc import Iterator, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from lightning_gpt.analysis.attention import AttentionMaps
from lightning_gpt.analysis.page_colours import DIVERGING, MASK, SEQUENTIAL

_MOST_LABELS = 40
_MOST_TILE_PIXELS = 192
_FEWEST_FOR_NUMBERS = 9
_MOST_LAYERS, _MOST_HEADS = 8, 8
"""So many layers and heads of a layer have pictures in TensorBoard, where each validation draws them."""
_WIDEST = 15.0
"""Inches of a picture: 1,800 pixels as `inspect` saves it, so that a screen shows all of it."""


def heads_grid(maps: AttentionMaps, title: str) -> Figure:
    """The attention pattern of every head: one row per layer, one column per head, one colour scale from 0 to 1.

    All heads are drawn as one image, because matplotlib needs a second for every ten axes. Texts of more than about
    200 tokens are averaged down to the pixels available for a head.
    """
    tiles = _shrink(np.where(maps.mask, maps.pattern, np.nan), _MOST_TILE_PIXELS)
    rows, columns, height, width = tiles.shape
    gap = max(1, round(0.08 * max(height, width)))
    canvas = np.full((rows, height + gap, columns, width + gap), np.nan, dtype=np.float32)
    canvas[:, :height, :, :width] = tiles.transpose(0, 2, 1, 3)
    picture = canvas.reshape(rows * (height + gap), columns * (width + gap))[:-gap, :-gap]
    side = min(1.9, (_WIDEST - 1.2) / columns)
    figure = Figure(figsize=(1.2 + side * columns, 0.9 + side * rows * height / width), layout="constrained")
    ax = figure.subplots()
    ax.set_facecolor("white")
    image = ax.imshow(np.ma.masked_invalid(picture), vmin=0, vmax=1, cmap=SEQUENTIAL, interpolation="nearest")
    ax.set_xticks([column * (width + gap) + width / 2 - 0.5 for column in range(columns)], map(str, range(columns)))
    ax.set_yticks([row * (height + gap) + height / 2 - 0.5 for row in range(rows)], map(str, range(rows)))
    ax.xaxis.tick_top()
    ax.xaxis.set_label_position("top")
    ax.set_xlabel("head")
    ax.set_ylabel("layer")
    ax.tick_params(length=0)
    for side in ax.spines.values():
        side.set_visible(False)
    figure.colorbar(image, ax=ax, label="attention", shrink=0.7, aspect=10 + 4 * rows)
    figure.suptitle(title)
    return figure


class FewHeads:
    """Four heads of a layer in a picture of a card's size, for TensorBoard, where a larger grid's labels are too small.

    One figure is drawn anew for each picture, because making its axes takes as long as drawing it.

    Args:
        maps: The attention of a model over a text.
    """

    def __init__(self, maps: AttentionMaps) -> None:
        self._tiles = _shrink(np.where(maps.mask, maps.pattern, np.nan), _MOST_TILE_PIXELS)
        self._figure = Figure(figsize=(3.4, 3.7))
        self._axes = self._figure.subplots(2, 2).ravel()
        self._figure.subplots_adjust(left=0.02, right=0.98, bottom=0.02, top=0.85, hspace=0.16, wspace=0.06)
        self._images = [ax.imshow(self._tiles[0, 0], vmin=0, vmax=1) for ax in self._axes]
        for ax in self._axes:
            ax.set_axis_off()

    def pictures(self, step: int) -> Iterator[tuple[str, Figure]]:
        """The pictures of up to :data:`_MOST_LAYERS` layers from first to last, by ``layer_04/heads_00_03``.

        A figure is valid until the next one.
        """
        layers, heads = self._tiles.shape[:2]
        shown = np.unique(np.linspace(0, layers - 1, min(layers, _MOST_LAYERS)).round().astype(int))
        for layer in shown:
            for first in range(0, min(heads, _MOST_HEADS), 4):
                here = range(first, min(first + 4, heads))
                for ax, image, head in zip(self._axes, self._images, range(first, first + 4), strict=True):
                    ax.set_visible(head in here)
                    if head in here:
                        image.set_data(np.ma.masked_invalid(self._tiles[layer, head]))
                        ax.set_title(f"head {head}", fontsize=13, pad=3)
                self._figure.suptitle(f"layer {layer}, step {step:,}", fontsize=13)
                yield f"layer_{layer:02}/heads_{here[0]:02}_{here[-1]:02}", self._figure


def three_matrices(maps: AttentionMaps, layer: int, head: int) -> Figure:
    """Mask, scaled scores and softmax of one head side by side, labelled with the tokens."""
    mask, scores, pattern = (matrix[layer, head] for matrix in (maps.mask, maps.scores, maps.pattern))
    side = max(3.2, min((_WIDEST - 1) / 3, 0.34 * len(maps.keys) + 1.6))
    figure = Figure(figsize=(3 * side + 1, 0.85 * side + 0.9), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    left.imshow(mask, vmin=0, vmax=1, cmap=MASK)
    left.set_title("causal mask: attention allowed where blue")
    limit = float(np.abs(scores).max()) or 1.0
    image = middle.imshow(scores, vmin=-limit, vmax=limit, cmap=DIVERGING)
    middle.set_title("scaled scores  $Q K^T / \\sqrt{d}$")
    figure.colorbar(image, ax=middle, shrink=0.7)
    image = right.imshow(np.ma.masked_array(pattern, ~mask), vmin=0, vmax=1, cmap=SEQUENTIAL)
    right.set_title("softmax over the allowed positions")
    figure.colorbar(image, ax=right, shrink=0.7)
    for ax in (left, middle, right):
        _label(ax, maps)
    if len(maps.keys) <= _FEWEST_FOR_NUMBERS:
        _write_values(middle, scores, np.ones_like(mask), limit)
        _write_values(right, pattern, mask, 1.0)
    figure.suptitle(f"layer {layer}, head {head}: row attends to column")
    return figure


def ablation_grid(changes: np.ndarray, columns: list[str], title: str) -> Figure:
    """The change in loss when a part is ablated: ``changes`` ``(n_layer, parts)`` in nats, one column per part.

    A part that a layer does not have is NaN and stays grey.
    """
    rows, width = changes.shape
    figure = Figure(figsize=(min(_WIDEST, 1.8 + 0.7 * width), 1.4 + 0.45 * rows), layout="constrained")
    ax = figure.subplots()
    limit = float(np.abs(changes[np.isfinite(changes)]).max(initial=0.0)) or 1.0
    image = ax.imshow(changes, vmin=-limit, vmax=limit, cmap=DIVERGING, aspect="auto")
    ax.set_facecolor("lightgrey")
    ax.set_xticks(range(width), columns)
    ax.set_yticks(range(rows), map(str, range(rows)))
    ax.set_xlabel("head")
    ax.set_ylabel("layer")
    if width <= _MOST_LABELS:
        for (row, column), change in np.ndenumerate(changes):
            colour = "white" if abs(change) > 0.75 * limit else "black"
            said = "–" if np.isnan(change) else f"{change:+.3f}"
            ax.text(column, row, said, ha="center", va="center", fontsize=7, color=colour)
    figure.colorbar(image, ax=ax, label="change in loss, nats")
    figure.suptitle(title)
    return figure


def layer_heatmap(
    values: np.ndarray, columns: str, label: str, title: str, tokens: Sequence[str] | None = None
) -> Figure:
    """One number per layer and position or head, ``(n_layer, columns)``; layer 0 at the bottom.

    Blue to red about 0 if a value is negative, else from 0 in one colour. nan stays grey.

    Args:
        values: The numbers.
        columns: What the columns are: ``head`` or ``position``.
        label: What the numbers are.
        title: The title.
        tokens: The columns' names; their numbers if None.
    """
    rows, width = values.shape
    limit = float(np.nanmax(np.abs(values), initial=0.0)) or 1.0
    signed = bool((values < 0).any())
    figure = Figure(figsize=(2.4 + min(0.34 * width, 12), 1.6 + min(0.3 * rows, 10)), layout="constrained")
    ax = figure.subplots()
    ax.set_facecolor("lightgrey")
    smallest, colours = (-limit, "RdBu_r") if signed else (0.0, "viridis")
    shown = np.ma.masked_invalid(values)
    image = ax.imshow(
        shown, vmin=smallest, vmax=limit, cmap=colours, origin="lower", aspect="auto", interpolation="nearest"
    )
    ax.yaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set_ylabel("layer")
    if tokens is None or len(tokens) > _MOST_LABELS:
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        ax.set_xlabel(columns)
    else:
        names = [token.replace("$", r"\$").replace("\n", "↵") for token in tokens]
        ax.set_xticks(range(width), names, rotation=90, fontsize=8, family="monospace")
    figure.colorbar(image, ax=ax, label=label)
    ax.set_title(title, fontsize=10)
    return figure


def _shrink(matrices: np.ndarray, most: int) -> np.ndarray:
    """Average blocks until neither of the last two axes is longer than ``most``; masked entries (NaN) are skipped."""
    total, count = np.nan_to_num(matrices), np.isfinite(matrices).astype(np.float32)
    for axis in (-2, -1):
        starts = range(0, total.shape[axis], -(-total.shape[axis] // most))
        total, count = (np.add.reduceat(values, starts, axis=axis) for values in (total, count))
    means: np.ndarray = np.divide(total, count, out=np.full_like(total, np.nan), where=count > 0)
    return means


def _label(ax: Axes, maps: AttentionMaps) -> None:
    if len(maps.keys) > _MOST_LABELS:
        return
    # matplotlib would read a $ as the start of a formula
    columns, rows = ([name.replace("$", r"\$") for name in names] for names in (maps.keys, maps.tokens))
    ax.set_xticks(range(len(columns)), columns, rotation=90, fontsize=8, family="monospace")
    ax.set_yticks(range(len(rows)), rows, fontsize=8, family="monospace")


def _write_values(ax: Axes, values: np.ndarray, shown: np.ndarray, full_scale: float) -> None:
    for (row, column), value in np.ndenumerate(values):
        if shown[row, column]:
            dark = abs(value) > (0.5 if full_scale == 1.0 else 0.75) * full_scale
            colour = "white" if dark else "black"
            ax.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=7, color=colour)
