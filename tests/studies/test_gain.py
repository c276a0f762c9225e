"""What an axis buys in each setting: the report's section ``gain``."""

import dataclasses
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from lightning_gpt.errors import CallError
from lightning_gpt.studies.report.document import Findings, Picture, Table, Written
from lightning_gpt.studies.report.estimates import LEVEL
from lightning_gpt.studies.report.results import StudyResults
from lightning_gpt.studies.report.sections import make_section
from lightning_gpt.studies.report.tested import written
from tests.studies.helpers import LAYERS, finished, study

DROPOUT = "model.init_args.dropout"
VARIANTS = {name: {DROPOUT: number / 10} for number, name in enumerate(("all", "less", "same", "more", "worse"))}
GAINS = {"all": 0.2, "less": 0.1, "same": 0.2, "more": 0.4, "worse": -0.3}


def made(folder: Path, loss: Callable[[str, int, int], float], seeds: int = 5) -> StudyResults:
    """Five settings at three depths, whose loss is a function of setting, depth and seed."""
    small = study(folder, variants=VARIANTS, grid={LAYERS: [2, 4, 8]}, seeds=list(range(seeds)))
    return StudyResults(
        small,
        [
            dataclasses.replace(
                finished(cell),
                values={"val/loss": loss(cell.settings["variant"], cell.settings[LAYERS], cell.seed)},
            )
            for cell in small.cells
        ],
    )


def noisy(name: str, depth: int, seed: int) -> float:
    """Settings far apart in the loss; a seed's luck differs by depth and is far larger than a run's own noise."""
    luck = np.random.default_rng([depth, seed]).standard_normal()
    own = np.random.default_rng([ord(name[0]), depth, seed]).standard_normal()
    at_last = GAINS[name] if depth == 8 else 0.0
    return 5.0 + 0.3 * ord(name[0]) - at_last + 0.03 * luck + 0.002 * own


def blocks(found: StudyResults, **options: str) -> list[Written]:
    return written(make_section("gain", {"x": "n_layer", "y": "val/loss", **options}).blocks(found))


def said(shown: list[Written]) -> str:
    return " ".join(sentence for block in shown if isinstance(block, Findings) for sentence in block.sentences)


def test_gains_are_those_of_the_figures_and_held_against_one(tmp_path: Path) -> None:
    found = made(tmp_path, noisy)
    shown = blocks(found, beside="all")
    text = said(shown)
    words = re.match(
        r"Compared with all, the gain in validation loss is smaller with worse \((.*?)\); less \((.*?)\) and ", text
    )
    assert words is not None
    fall = {
        name: np.array([noisy(name, 2, seed) - noisy(name, 8, seed) for seed in range(5)]) for name in ("all", "less")
    }
    expected = stats.ttest_rel(fall["less"], fall["all"])
    low, high = expected.confidence_interval(1 - LEVEL)
    assert words[2].startswith(f"{np.mean(fall['less'] - fall['all']):.5f} nats [{low:.5f}, {high:.5f}], p")
    assert "larger with more (+0.19" in text
    assert "; and in 1 of 4 settings it is not shown to differ. With 5 seeds and 9 tests in this report, a diff" in text
    assert "Validation loss falls from n_layer 2 to 8 with more; " in text
    assert " and rises from n_layer 2 to 8 with worse" in text
    table, differences = (block for block in shown if isinstance(block, Table))
    assert [row[0] for row in table.rows] == list(VARIANTS)
    interval = stats.t.interval(1 - LEVEL, 4, fall["less"].mean(), stats.sem(fall["less"]))
    assert table.rows[1][3] == f"+{fall['less'].mean():.3f} [{interval[0]:.3f}, {interval[1]:.3f}]"
    assert table.rows[1][4:] == ["5", table.rows[1][5], "falls"]
    assert [row[5] for row in differences.rows] == ["lower", "not shown", "higher", "lower"]
    picture = next(block for block in shown if isinstance(block, Picture))
    drawn = [point for point in picture.chart.points if point[1] == "less" and point[2] == "seed"]
    assert [point[3] for point in drawn] == pytest.approx(list(fall["less"]))


def test_without_one_to_hold_against_only_the_gains_are_tested(tmp_path: Path) -> None:
    shown = blocks(made(tmp_path, lambda name, depth, seed: 5.0 + depth * (seed - 2)))
    assert said(shown) == "Validation loss is not shown to change from n_layer 2 to 8 in any of 5 settings."
    assert len([block for block in shown if isinstance(block, Table)]) == 1
    shown = blocks(made(tmp_path, noisy, seeds=1), beside="all")
    assert "With one seed each, the spread between seeds is unknown" in said(shown)


def test_a_setting_that_lacks_an_end_is_left_out(tmp_path: Path) -> None:
    found = made(tmp_path, noisy)
    part = [
        each for each in found.results if each.cell.settings["variant"] != "more" or each.cell.settings[LAYERS] != 8
    ]
    (table, _) = (block for block in blocks(StudyResults(found.study, part), beside="all") if isinstance(block, Table))
    assert "more" not in [row[0] for row in table.rows]
    assert not blocks(StudyResults(found.study, []))


def test_one_value_is_no_gain(tmp_path: Path) -> None:
    with pytest.raises(CallError, match="gain: 'n_layer' has one value only; a gain is between two"):
        make_section("gain", {"x": "n_layer", "y": "val/loss"}).check(study(tmp_path, grid={LAYERS: [4]}))
