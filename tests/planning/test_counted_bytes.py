"""Bytes by formula, beside those that real processes send."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

from lightning_gpt.planning.communication import traffic
from lightning_gpt.planning.devices import known_devices
from lightning_gpt.planning.training import Training
from tests.planning.counted_bytes import LAYOUTS, MICRO_BATCHES, ROWS, TIME, gpt
from tests.processes import run_forked


@pytest.fixture(scope="module")
def counted(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, float]:
    """What each layout sends, from one launch of two processes."""
    folder = tmp_path_factory.mktemp("bytes")
    done = run_forked("tests.planning.counted_bytes", str(folder / "bytes.json"), cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stderr
    return {name: sum(by.values()) for name, by in json.loads((folder / "bytes.json").read_text()).items()}


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_formula_is_what_is_sent(name: str, counted: Mapping[str, float]) -> None:
    layout, checkpointing = LAYOUTS[name]
    with torch.device("meta"):
        model = gpt(checkpointing)
    training = Training(model=model, precision="32-true", device="cpu", rows=ROWS, time=TIME, accumulate=MICRO_BATCHES)
    planned = sum(each.sent for each in traffic(training, layout, known_devices()["H100-SXM"]).values())
    assert counted[name] > 0
    assert planned == pytest.approx(counted[name], rel=0.05)
    larger = dataclasses.replace(training, accumulate=2 * MICRO_BATCHES)
    twice = sum(each.sent for each in traffic(larger, layout, known_devices()["H100-SXM"]).values())
    assert twice == pytest.approx(2 * planned), "each micro-batch sends as much"
