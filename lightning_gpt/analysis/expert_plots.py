"""A plot of how the experts of a mixture are used."""

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator


def expert_heatmap(shares: dict[int, list[float]], step: int) -> Figure:
    """Each expert's share of its layer's choices: one row per layer, the first at the bottom; white is an equal share.

    Args:
        shares: For each layer, the share of each expert; layers may have different numbers of experts.
        step: The optimizer step.
    """
    grid = np.full((len(shares), max(len(row) for row in shares.values())), np.nan)
    for place, row in enumerate(shares.values()):
        grid[place, : len(row)] = np.array(row) * len(row)
    figure = Figure(figsize=(3.4, 2.2), layout="constrained")  # the size of a card of TensorBoard's
    ax = figure.add_subplot()
    ax.set_facecolor("lightgrey")
    image = ax.imshow(grid, origin="lower", aspect="auto", interpolation="nearest", cmap="RdBu_r", vmin=0, vmax=2)
    every = range(0, len(shares), -(-len(shares) // 8))
    ax.set_yticks(every, [str(list(shares)[place]) for place in every], fontsize=9)
    ax.tick_params(axis="x", labelsize=9)
    ax.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    ax.set_xlabel("expert", fontsize=9)
    ax.set_ylabel("layer", fontsize=9)
    ax.set_title(f"use of the experts, step {step:,}", fontsize=9)
    figure.colorbar(image, ax=ax, label="share of the choices / equal share", extend="max")
    return figure
