"""A plot of how the experts of a mixture are used."""

import numpy as np
from matplotlib.figure import Figure


def expert_heatmap(shares: dict[int, list[float]], step: int) -> Figure:
    """Each expert's share of its layer's choices: one row per layer, the first at the bottom; white is an equal share.

    Args:
        shares: For each layer, the share of each expert; layers may have different numbers of experts.
        step: The optimizer step.
    """
    grid = np.full((len(shares), max(len(row) for row in shares.values())), np.nan)
    for place, row in enumerate(shares.values()):
        grid[place, : len(row)] = np.array(row) * len(row)
    figure = Figure(figsize=(2.2 + 0.3 * grid.shape[1], 1.4 + 0.3 * len(grid)), layout="constrained")
    ax = figure.add_subplot()
    ax.set_facecolor("lightgrey")
    image = ax.imshow(grid, origin="lower", aspect="auto", interpolation="nearest", cmap="RdBu_r", vmin=0, vmax=2)
    ax.set_yticks(range(len(shares)), [f"layer {layer}" for layer in shares], fontsize=8)
    ax.set_xlabel("expert", fontsize=8)
    ax.set_title(f"use of the experts, step {step:,}", fontsize=10)
    figure.colorbar(image, ax=ax, label="share of the choices / equal share", extend="max")
    return figure
