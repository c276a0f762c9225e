"""Pictures of attention."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lightning_gpt.analysis.attention import AttentionMaps

_MOST_LABELS = 40
_FEWEST_FOR_NUMBERS = 9


def heads_grid(maps: AttentionMaps, title: str) -> Figure:
    """The attention pattern of every head: a row a layer, a column a head, one colour scale from 0 to 1."""
    rows, columns = maps.n_layer, maps.n_head
    figure = Figure(figsize=(1.2 + 1.9 * columns, 0.9 + 1.9 * rows), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    for layer, row in enumerate(axes):
        for head, ax in enumerate(row):
            image = ax.imshow(_hide_future(maps.pattern[layer, head], maps.mask), vmin=0, vmax=1, cmap="viridis")
            ax.set_xticks([])
            ax.set_yticks([])
            if head == 0:
                ax.set_ylabel(f"layer {layer}")
            if layer == 0:
                ax.set_title(f"head {head}", fontsize=10)
    figure.colorbar(image, ax=axes, label="attention", shrink=0.7)
    figure.suptitle(title)
    return figure


def three_matrices(maps: AttentionMaps, layer: int, head: int) -> Figure:
    """Causal mask, scaled scores and softmax of one head side by side, with the tokens along them."""
    scores, pattern = maps.scores[layer, head], maps.pattern[layer, head]
    side = max(3.2, min(9.0, 0.34 * len(maps.tokens) + 1.6))
    figure = Figure(figsize=(3 * side + 1, 0.85 * side + 0.9), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    left.imshow(maps.mask, vmin=0, vmax=1, cmap="Greys_r")
    left.set_title("causal mask: white may be attended to")
    limit = float(np.abs(scores).max()) or 1.0
    image = middle.imshow(scores, vmin=-limit, vmax=limit, cmap="RdBu_r")
    middle.set_title("scaled scores  $Q K^T / \\sqrt{d}$")
    figure.colorbar(image, ax=middle, shrink=0.7)
    image = right.imshow(_hide_future(pattern, maps.mask), vmin=0, vmax=1, cmap="viridis")
    right.set_title("softmax over the allowed positions")
    figure.colorbar(image, ax=right, shrink=0.7)
    for ax in (left, middle, right):
        _label(ax, maps.tokens)
    if len(maps.tokens) <= _FEWEST_FOR_NUMBERS:
        _write_values(middle, scores, np.ones_like(maps.mask), limit)
        _write_values(right, pattern, maps.mask, 1.0)
    figure.suptitle(f"layer {layer}, head {head}: row attends to column")
    return figure


def _hide_future(pattern: np.ndarray, mask: np.ndarray) -> np.ma.MaskedArray:
    return np.ma.masked_array(pattern, ~mask)


def _label(ax: Axes, tokens: list[str]) -> None:
    if len(tokens) > _MOST_LABELS:
        return
    # a $ would start a formula
    labels = [token.replace("$", r"\$") for token in tokens]
    ax.set_xticks(range(len(tokens)), labels, rotation=90, fontsize=8, family="monospace")
    ax.set_yticks(range(len(tokens)), labels, fontsize=8, family="monospace")


def _write_values(ax: Axes, values: np.ndarray, shown: np.ndarray, full_scale: float) -> None:
    for (row, column), value in np.ndenumerate(values):
        if shown[row, column]:
            dark = value < 0.6 * full_scale if full_scale == 1.0 else abs(value) > 0.6 * full_scale
            colour = "white" if dark else "black"
            ax.text(column, row, f"{value:.2f}", ha="center", va="center", fontsize=7, color=colour)
