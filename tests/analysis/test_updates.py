"""How much a block changes the stream, against the definitions in plain loops."""

import math

import pytest
import torch

from lightning_gpt.analysis.layer_diagnostics import measure
from lightning_gpt.analysis.probe import Probe
from lightning_gpt.analysis.updates import angular_distance, update_cosine, update_size
from lightning_gpt.models import GPT, GPTConfig
from tests.models.helpers import random_ids, randomise

X, Y = torch.randn(2, 3, 4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def _cosine(a: list[float], b: list[float]) -> float:
    return sum(p * q for p, q in zip(a, b, strict=True)) / math.sqrt(sum(p * p for p in a) * sum(q * q for q in b))


def test_every_measure_is_its_formula() -> None:
    angles, cosines, sizes = [], [], []
    for x, y in zip(X.flatten(0, 1).tolist(), Y.flatten(0, 1).tolist(), strict=True):
        added = [q - p for p, q in zip(x, y, strict=True)]
        angles.append(math.acos(_cosine(x, y)) / math.pi)
        cosines.append(_cosine(added, x))
        sizes.append(math.sqrt(sum(a * a for a in added) / sum(p * p for p in x)))
    assert float(angular_distance(X, Y)) == pytest.approx(sum(angles) / 12, rel=1e-12)
    assert float(update_cosine(X, Y)) == pytest.approx(sum(cosines) / 12, rel=1e-12)
    assert float(update_size(X, Y)) == pytest.approx(sum(sizes) / 12, rel=1e-12)


@pytest.mark.parametrize(
    ("factor", "angle", "cosine", "size"), [(2.0, 0.0, 1.0, 1.0), (-1.0, 1.0, -1.0, 2.0), (0.5, 0.0, -1.0, 0.5)]
)
def test_the_ends_of_the_ranges(factor: float, angle: float, cosine: float, size: float) -> None:
    assert float(angular_distance(X, factor * X)) == pytest.approx(angle, abs=1e-7)  # arccos is steep at its ends
    assert float(update_cosine(X, factor * X)) == pytest.approx(cosine, abs=1e-12)
    assert float(update_size(X, factor * X)) == pytest.approx(size, abs=1e-12)


def test_a_stream_that_stays_turns_by_nothing_in_fp32() -> None:
    x = torch.randn(2, 50, 64, generator=torch.Generator().manual_seed(1))
    for scale in (1e-12, 1.0, 1e12):
        assert float(angular_distance(scale * x, scale * x)) == 0.0
        assert float(angular_distance(scale * x, -scale * x)) == 1.0
        assert float(update_cosine(scale * x, 3 * scale * x)) == pytest.approx(1.0, rel=1e-6)
        assert float(update_size(scale * x, 3 * scale * x)) == pytest.approx(2.0, rel=1e-6)
    assert angular_distance(x, x).dtype == torch.float32


def test_what_is_added_to_nothing_is_infinitely_large() -> None:
    nothing, x = torch.zeros(1, 2, 3), torch.ones(1, 2, 3)
    assert float(update_size(nothing, nothing)) == 0.0
    assert float(update_size(nothing, x)) == math.inf


def test_a_block_that_adds_nothing_has_none_and_one_whose_output_is_scaled_up_has_more() -> None:
    model = randomise(GPT(GPTConfig(n_layer=3, n_head=2, dim=8, block_size=6, vocab_size=11))).double()
    model.blocks[1].zero_branches()
    with torch.no_grad():
        model.blocks[2].ffn.down.weight *= 50
    ids = random_ids(11, 2, 6)
    figures = measure(Probe.take(model, ids, ids.roll(-1, 1)))
    assert figures["update_size"][1] == 0.0
    assert figures["update_cosine"][1] == 0.0
    assert figures["angular_distance"][1] == pytest.approx(0.0, abs=1e-3)
    assert figures["update_size"][2] > figures["update_size"][0] > 0.0  # type: ignore[operator]
    assert figures["angular_distance"][2] > 0.1  # type: ignore[operator]
