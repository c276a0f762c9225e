"""Settings that train with equal tokens or FLOPs take the steps for them."""

from pathlib import Path
from typing import Any

import pytest

from lightning_gpt.errors import CallError
from lightning_gpt.studies.spec.cells import value_at
from lightning_gpt.studies.spec.equal import WIDTH_KEY
from lightning_gpt.studies.spec.study import Study
from tests.studies.helpers import LAYERS, study

TRAINER = {"max_steps": 600, "val_check_interval": 300, "accumulate_grad_batches": 2}
WORK = [{"tokens": 100.0, "flops": 1e9}, {"tokens": 100.0, "flops": 2e9}, {"tokens": 200.0, "flops": 7e9}]


def plans(made: Study) -> list[tuple[int, int]]:
    """Steps and steps between validations of each setting."""
    trainers = [cell.config["trainer"] for cell in made.cells[:: len(made.seeds)]]
    return [(each["max_steps"], each["val_check_interval"] // 2) for each in trainers]


@pytest.mark.parametrize(
    ("equal", "expected"),
    [("flops", [(600, 150), (300, 75), (84, 21)]), ("tokens", [(600, 150), (600, 150), (300, 75)])],
)
def test_every_setting_takes_what_the_first_takes(equal: str, expected: list[tuple[int, int]], tmp_path: Path) -> None:
    made = study(tmp_path, equal=equal, config={"trainer": TRAINER})
    assert plans(made) == [(600, 150)] * 3, "the models have not been measured yet"
    done = made.with_work(WORK)
    assert plans(done) == expected  # four validations each, the last at the end
    assert {cell.folder for cell in done.cells[:2]} == {cell.folder for cell in made.cells[:2]}
    total = [
        cell.config["trainer"]["max_steps"] * work[equal] for cell, work in zip(done.cells[::2], WORK, strict=True)
    ]
    assert total == pytest.approx([total[0]] * 3, rel=0.03)


def test_stages_keep_steps_of_their_own(tmp_path: Path) -> None:
    tune = {"key": "model.init_args.optimization.lr", "values": [0.1, 0.2], "budget": 7}
    made = study(tmp_path, equal="flops", tune=tune, alone={"steps": 5}, config={"trainer": TRAINER}).with_work(WORK)
    assert {cell.config["trainer"]["max_steps"] for cell in made.trials.cells} == {7}
    assert {cell.config["trainer"]["max_steps"] for cell in made.provisional.costs.cells} == {5}
    assert {cell.config["trainer"]["max_steps"] for cell in made.provisional.cells} == {600, 300, 84}


@pytest.mark.parametrize(
    "over",
    [
        {"trainer": {"max_steps": 600}},
        {"trainer": {"val_check_interval": 5}},
        {"trainer": {"max_steps": 600, "val_check_interval": 0.5}},
        {"trainer": {"max_steps": 600, "val_check_interval": 350}},
        {"trainer": TRAINER, "data": {"global_batch": 8}},
    ],
)
def test_what_has_no_plan_of_steps_is_refused(over: dict[str, Any], tmp_path: Path) -> None:
    made = study(tmp_path, equal="flops", config=over).with_work(WORK)
    with pytest.raises(CallError, match=r"equal needs trainer\.max_steps, a trainer\.val_check_interval"):
        _ = made.cells


def test_what_cannot_be_equal_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CallError, match="equal is 'time'; it must be tokens, flops or parameters"):
        study(tmp_path, equal="time")


def test_equal_parameters_set_the_width_of_cells_and_trials(tmp_path: Path) -> None:
    rate = "model.init_args.optimization.lr"
    tune = {"key": rate, "values": [0.1, 0.2], "budget": 7}
    made = study(tmp_path, equal="parameters", tune=tune, config={"trainer": TRAINER})
    done = made.with_work([{WIDTH_KEY: width} for width in (64.0, 48.0, 32.0)])
    widths = {cell.settings[LAYERS]: value_at(cell.config, WIDTH_KEY) for cell in done.provisional.cells}
    assert list(widths.values()) == [64, 48, 32]
    assert {value_at(cell.config, "trainer.max_steps") for cell in done.cells} == {600}
    for cell in done.trials.cells:
        assert value_at(cell.config, WIDTH_KEY) == widths[cell.settings[LAYERS]]
        assert value_at(cell.config, "trainer.max_steps") == 7


@pytest.mark.parametrize("over", [{"grid": {WIDTH_KEY: [8, 16]}}, {"variants": {"a": {WIDTH_KEY: 8}}}])
def test_a_width_that_is_set_cannot_be_chosen_too(over: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(CallError, match=r"equal: parameters sets model\.init_args\.dim, so it cannot be an axis"):
        study(tmp_path, equal="parameters", **over)
