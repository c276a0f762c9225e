"""The tables of what a config may hold are complete, and what is in range passes; tests/hostile has what does not."""

import inspect
import typing
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from lightning import Trainer

from lightning_gpt.commands.data_section import RUN_KEYS
from lightning_gpt.commands.lightning_cli import TrainCLI
from lightning_gpt.commands.trainer_ranges import TRAINER_DEFAULTS, TRAINER_RANGES, check_trainer
from lightning_gpt.errors import CallError

IN_RANGE: dict[str, list[Any]] = {
    "max_steps": [-1, 1, 10**12],
    "max_epochs": [-1, 1],
    "min_steps": [0],
    "min_epochs": [0],
    "max_time": ["00:00:00:01", "100:00:00:00", {"hours": 8}, timedelta(minutes=1)],
    "limit_train_batches": [1, 0.1, 1.0],
    "limit_val_batches": [0, 0.0, 1, 1.0, 7],
    "limit_test_batches": [0, 1.0],
    "limit_predict_batches": [0, 1.0],
    "overfit_batches": [0.0, 4, 0.5],
    "fast_dev_run": [True, False, 0, 3],
    "val_check_interval": [1, 0.25, 1.0, "00:00:30:00", {"minutes": 5}],
    "check_val_every_n_epoch": [1],
    "num_sanity_val_steps": [-1, 0, 2],
    "log_every_n_steps": [0, 1],
    "accumulate_grad_batches": [1, 8],
    "gradient_clip_val": [0, 0.5, 1],
    "gradient_clip_algorithm": ["norm", "value"],
    "reload_dataloaders_every_n_epochs": [0, 1],
    "devices": ["auto", "-1", -1, 1, "2", "0,", "0,1", [0], [0, 3]],
    "num_nodes": [1, 4],
}


def numbers(annotation: Any) -> bool:
    """Whether an option's type allows a number."""
    return any(part in (int, float) or numbers(part) for part in typing.get_args(annotation))


def test_every_number_of_the_trainer_has_a_range() -> None:
    parameters = inspect.signature(Trainer.__init__).parameters.items()
    options = {name for name, parameter in parameters if parameter.annotation is int or numbers(parameter.annotation)}
    assert {"accumulate_grad_batches", "gradient_clip_val", "devices", "max_steps"} <= options
    assert options <= set(TRAINER_RANGES)
    assert set(TRAINER_RANGES) == set(IN_RANGE)


@pytest.mark.parametrize("name", IN_RANGE)
def test_what_is_in_range_passes(name: str) -> None:
    for value in (None, *IN_RANGE[name]):
        check_trainer({**TRAINER_DEFAULTS, name: value})


@pytest.mark.parametrize("name", ["max_time", "val_check_interval"])
@pytest.mark.parametrize("value", ["00:00:00:00", "00:8:00:00", {"hours": 0}, "٠١:00:00:00"])
def test_a_duration_is_above_0_and_of_a_clock(name: str, value: Any) -> None:
    with pytest.raises(CallError, match=rf"trainer.{name} is .*a duration above 0 as DD:HH:MM:SS") as refused:
        check_trainer({name: value})
    assert len(str(refused.value)) <= 293  # "error: " comes before it
    for allowed in ("00:23:59:59", "00:36:00:00", "00:00:90:00"):
        check_trainer({name: allowed})


def test_the_keys_of_a_run_are_those_of_fit(tmp_path: Path) -> None:
    config = tmp_path / "unknown.yaml"
    config.write_text("zzz: 1\n")
    with pytest.raises(CallError) as refused:
        TrainCLI(["fit", "--config", str(config)])
    assert str(refused.value) == (
        f"config file {str(config)!r}: unknown key 'zzz'; the keys are {', '.join(sorted(RUN_KEYS))}"
    )
