"""Bytes by formula, beside those that real processes send."""

import dataclasses
import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import pytest
import torch

from lightning_gpt.parallel.layout import Layout
from lightning_gpt.planning.communication import Traffic, traffic
from lightning_gpt.planning.devices import known_devices
from lightning_gpt.planning.training import Training
from tests.planning.counted_bytes import BOTH, CASES, TIME, gpt
from tests.processes import run_forked


@pytest.fixture(scope="module")
def counted(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Sequence[float]]:
    """What each process sends in each case, from one launch of two processes and one of four."""
    folder = tmp_path_factory.mktemp("bytes")
    done = run_forked("tests.planning.counted_bytes", str(folder), cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stderr
    found = {name: counts for file in folder.iterdir() for name, counts in json.loads(file.read_text()).items()}
    return {name: [sum(by.values()) for by in of_all] for name, of_all in found.items()}


@pytest.mark.parametrize("name", CASES | BOTH)
def test_the_formula_is_what_is_sent(name: str, counted: Mapping[str, Sequence[float]]) -> None:
    case = (CASES | BOTH)[name]
    layout = case.layout
    with torch.device("meta"):
        model = gpt(case.options)
    training = Training(
        model=model, precision=case.precision, device="cpu", rows=case.rows, time=TIME, accumulate=case.batches
    )
    planned = [_traffic(training, layout, rank) for rank in range(layout.devices)]
    found, expected = counted[name], [sum(each.sent for each in of_rank) for of_rank in planned]
    assert min(found) > 0
    assert expected == pytest.approx(found, rel=0.05)
    larger = _traffic(dataclasses.replace(training, accumulate=2 * case.batches), layout, 0)
    assert sum(each.sent for each in larger) == pytest.approx(2 * sum(each.sent for each in planned[0]))


def _traffic(training: Training, layout: Layout, rank: int) -> Collection[Traffic]:
    stage = layout.coordinates(rank)["pipeline"]
    return traffic(training, layout, known_devices()["H100-SXM"], stage).values()
