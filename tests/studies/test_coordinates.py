"""The coordinate check's slopes are those of the figures, and its words follow from them."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from lightning_gpt.errors import CallError
from lightning_gpt.studies.report.document import Findings, Picture, Table
from lightning_gpt.studies.report.report import check_report
from lightning_gpt.studies.report.results import StudyResults
from lightning_gpt.studies.report.sections import make_section
from tests.studies.helpers import finished, study

WIDTHS = (64, 128, 256)


def variants(widths: tuple[int, ...] = WIDTHS) -> dict[str, dict[str, Any]]:
    made: dict[str, dict[str, Any]] = {f"standard {width}": {"model.init_args.dim": width} for width in widths}
    mup = {"model.init_args.optimization.mup": {"base_dim": 64}}
    return made | {f"μP {width}": {"model.init_args.dim": width, **mup} for width in widths}


def figures(folder: Path, powers: dict[str, list[float]], luck: float = 0.02) -> StudyResults:
    """Layer i has the size ``width^power[i]`` after training, times 1 or 1 + luck by seed, and width^½ before."""
    made = study(folder, grid={}, variants=variants())
    results = []
    for cell in made.cells:
        width = cell.config["model"]["init_args"]["dim"]
        own = powers["μP" if "optimization" in cell.config["model"]["init_args"] else "standard"]
        sizes = [(1 + luck * cell.seed) * width**power for power in own]
        steps = [{"step": 0, "rms": [width**0.5] * len(own)}, {"step": 10, "rms": sizes}]
        results.append(finished(cell, layers=steps))
    return StudyResults(made, results)


def test_slopes_are_the_powers_of_the_width(tmp_path: Path) -> None:
    found = figures(tmp_path, {"standard": [0.0, 0.5, 1.5], "μP": [0.0, 0.02, -0.1]})
    blocks = make_section("coordinates", {"diagnostic": "rms"}).blocks(found)
    (table,) = (block for block in blocks if isinstance(block, Table))
    assert table.header[1:] == ["width 64", "width 128", "width 256", "slope", "slope before training"]
    slopes = {row[0]: row[-2:] for row in table.rows}
    assert slopes["standard, embedding"] == ["+0.000 ± 0.024", "+0.500"]
    assert slopes["standard, layer 2"] == ["+1.500 ± 0.024", "+0.500"]
    assert slopes["μP, base 64, layer 2"] == ["-0.100 ± 0.024", "+0.500"]
    assert table.rows[2][1:4] == ["517.1", "1,463", "4,137"]  # 1.01 · width^1.5
    (said,) = (block.sentences for block in blocks if isinstance(block, Findings))
    assert said == [
        "Activation RMS after training (standard) grows with the width (steepest slope: +1.50 "
        "[+1.47, +1.53], layer 2; beyond ±0.25 in 2 of 3 layers).",
        "Activation RMS after training (μP, base 64) does not depend on the width in any layer (steepest "
        "slope: -0.10 [-0.13, -0.07], layer 2; up to ±0.25 counts as flat).",
    ]
    (picture,) = (block for block in blocks if isinstance(block, Picture))
    assert [ax.get_title() for ax in picture.chart.axes] == ["standard", "μP, base 64"]
    for ax in picture.chart.axes:
        assert (ax.get_xscale(), ax.get_yscale()) == ("log", "log")
        assert len(ax.get_lines()) >= 3


def test_what_shrinks_is_said_to(tmp_path: Path) -> None:
    found = figures(tmp_path, {"standard": [-1.0, 0.0], "μP": [0.0, 0.0]})
    blocks = make_section("coordinates", {"diagnostic": "rms"}).blocks(found)
    (said,) = (block.sentences for block in blocks if isinstance(block, Findings))
    assert "shrinks with the width (steepest slope: -1.00 [-1.03, -0.97], embedding; beyond ±0.25 in 1 of 2" in said[0]


def test_what_the_seeds_cannot_tell_is_open(tmp_path: Path) -> None:
    found = figures(tmp_path, {"standard": [-0.2, 0.0], "μP": [0.0, 0.0]}, luck=0.1)
    blocks = make_section("coordinates", {"diagnostic": "rms"}).blocks(found)
    (said,) = (block.sentences for block in blocks if isinstance(block, Findings))
    assert said[0].startswith("Whether activation RMS after training (standard) depends on the width is open:")
    assert said[1].startswith("Activation RMS after training (μP, base 64) does not depend on the width in any layer")


def test_without_figures_there_is_nothing(tmp_path: Path) -> None:
    found = figures(tmp_path, {"standard": [0.0], "μP": [0.0]})
    none = StudyResults(found.study, [dataclasses.replace(result, layers=[]) for result in found.results])
    assert make_section("coordinates", {"diagnostic": "rms"}).blocks(none) == []


@pytest.mark.parametrize(
    ("over", "message"),
    [
        ({"variants": variants((64, 128))}, r"coordinates needs at least three widths, but standard has \[64, 128\]"),
        ({"config": {}, "variants": {"a": {}}}, "coordinates needs model.init_args.dim in every cell"),
    ],
)
def test_what_has_no_slope_is_refused(over: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(CallError, match=message):
        check_report(study(tmp_path, grid={}, report=[{"coordinates": {"diagnostic": "rms"}}], **over))
