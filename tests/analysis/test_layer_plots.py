"""The pictures of the diagnostics show every layer and step, also of runs in which something is missing."""

import pytest
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from lightning_gpt.analysis.layer_diagnostics import DIAGNOSTICS, Value
from lightning_gpt.analysis.layer_plots import Heatmaps, cka_heatmap, value_spectra


def drawn(figure: Figure) -> Figure:
    FigureCanvasAgg(figure).draw()
    return figure


@pytest.mark.parametrize("layers", [1, 4, 30])
def test_heatmap_has_a_row_a_layer_and_a_column_a_step(layers: int) -> None:
    steps = list(range(0, 230, 10))
    figures = [[step + 0.5 * layer for layer in range(layers)] for step in steps]
    figure = drawn(Heatmaps().draw(DIAGNOSTICS["token_cosine"], steps, figures))
    (ax,) = figure.axes
    (image,) = ax.images
    shown = image.get_array()
    assert shown.shape == (layers, len(steps))
    assert float(shown[-1, 2]) == 20 + 0.5 * (layers - 1)
    assert ax.get_ylim()[0] < ax.get_ylim()[1], "depth goes up"
    assert ax.get_yticklabels()[0].get_text() == "emb."
    assert [label.get_text() for label in ax.get_xticklabels()] == [str(step) for step in steps[::3]]
    assert {text.get_text() for text in figure.texts} == {f"{0.0:.3g}", f"{220 + 0.5 * (layers - 1):.3g}"}


def test_heads_are_averaged_and_missing_layers_left_out() -> None:
    figure = drawn(
        Heatmaps().draw(DIAGNOSTICS["attention_entropy"], [0, 5], [[[1.0, 3.0], None], [[2.0, 2.0], [None, 1.0]]])
    )
    shown = figure.axes[0].images[0].get_array()
    assert shown[0].tolist() == [2.0, 2.0]
    assert bool(shown.mask[1].all())
    assert figure.axes[0].get_ylabel() == "block"
    assert figure.axes[0].get_yticklabels()[0].get_text() == "0"


def test_a_picture_on_shared_axes_is_the_picture_alone() -> None:
    steps, shared = [0, 5, 9], Heatmaps()
    figures: dict[str, list[list[Value]]] = {
        "rms": [[1.0, 2.0], [3.0, None], [0.5, 7.0]],
        "token_cosine": [[0.1, 0.2], [None, 0.3], [0.4, 0.5]],
        "grad_norm": [[5.0, 6.0], [7.0, 8.0], [9.0, 9.5]],  # of blocks: other labels
        "effective_rank": [[2.0, 2.0], [2.0, 2.0], [2.0, 2.0]],
    }
    for name, values in figures.items():
        together = FigureCanvasAgg(shared.draw(DIAGNOSTICS[name], steps, values))
        alone = FigureCanvasAgg(Heatmaps().draw(DIAGNOSTICS[name], steps, values))
        together.draw()
        alone.draw()
        assert bytes(together.buffer_rgba()) == bytes(alone.buffer_rgba())


def test_nothing_but_missing_values_is_drawn_too() -> None:
    drawn(Heatmaps().draw(DIAGNOSTICS["rms"], [0], [[None, None]]))
    drawn(value_spectra([None, torch.full((2, 3), torch.nan, dtype=torch.complex64)], 5)["blocks_00_01"])


def test_every_eigenvalue_is_a_point_within_the_axes() -> None:
    eigenvalues = [torch.tensor([[1 + 1j, 1 - 1j], [-2 + 0j, 0j]]), None, *[torch.zeros(2, 2) + 0j] * 3]
    pictures = value_spectra(eigenvalues, 5)
    assert list(pictures) == ["blocks_00_03", "blocks_04_04"]
    figure = drawn(next(iter(pictures.values())))
    first, second, *_ = figure.axes
    points = [point for line in first.lines for point in zip(*line.get_data(), strict=True)]
    assert points == [(1, 1), (1, -1), (-2, 0), (0, 0)]
    assert first.get_xlim()[0] < -2
    assert first.get_xlim() == second.get_xlim()
    assert len(second.lines) == 0


def test_a_circle_separates_what_amplifies_from_what_does_not() -> None:
    """Its points have |1 + λ| = 1, also where the axes show only a small part of it."""
    for size in (0.01, 4.0):
        ax = drawn(value_spectra([torch.tensor([[size + 0j]])], 5)["blocks_00_00"]).axes[0]
        (circle,) = ax.patches
        points = ax.transData.inverted().transform(circle.get_transform().transform_path(circle.get_path()).vertices)
        on_the_curve = points[::3][:-1]  # the ends of the Bézier curves
        assert abs(1 + on_the_curve[:, 0] + 1j * on_the_curve[:, 1]) == pytest.approx(1.0, abs=1e-6)


def test_cka_is_on_one_scale_from_0_to_1() -> None:
    image = drawn(cka_heatmap(torch.eye(5), 7)).axes[0].images[0]
    assert image.get_clim() == (0, 1)
    assert image.get_array().shape == (5, 5)
