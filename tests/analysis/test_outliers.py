"""Outliers of the stream, against their definitions in plain loops, and planted ones."""

import math
import statistics

import pytest
import torch

from lightning_gpt.analysis.massive_activations import MassiveActivation, massive_activations, massive_entries
from lightning_gpt.analysis.outliers import (
    activation_kurtosis,
    dimension_strengths,
    largest_activation,
    largest_over_median,
    residual_sink,
)
from lightning_gpt.models import GPT, GPTConfig, SingleHeadConfig, SingleHeadModel
from tests.models.helpers import random_ids, randomise

T, D = 5, 7  # both odd, so that a median is an entry
X = torch.randn(3, T, D, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def test_every_measure_is_its_formula() -> None:
    for row, x in enumerate(X.tolist()):
        entries = [abs(value) for token in x for value in token]
        squares = [sum(token[j] ** 2 for token in x) / T for j in range(D)]
        kurtosis = (sum(s**2 for s in squares) / D) / (sum(squares) / D) ** 2
        rms = [math.sqrt(sum(value**2 for value in token) / D) for token in x]
        strengths = [
            statistics.median(abs(token[j]) / size for token, size in zip(x, rms, strict=True)) for j in range(D)
        ]
        assert float(activation_kurtosis(X)[row]) == pytest.approx(kurtosis, rel=1e-12)
        assert float(largest_activation(X)[row]) == max(entries)
        assert float(largest_over_median(X)[row]) == pytest.approx(max(entries) / statistics.median(entries), rel=1e-12)
        assert dimension_strengths(X)[row].tolist() == pytest.approx(strengths, rel=1e-12)
        assert float(residual_sink(X)[row]) == pytest.approx(max(strengths), rel=1e-12)


def test_the_ends_of_the_ranges() -> None:
    even, single = torch.ones(T, D), torch.zeros(T, D)
    single[:, 2] = 3.0
    assert float(activation_kurtosis(even)) == pytest.approx(1.0)
    assert float(activation_kurtosis(single)) == pytest.approx(D)
    assert float(largest_over_median(even)) == 1.0
    assert float(residual_sink(single)) == pytest.approx(math.sqrt(D))
    for measure in (activation_kurtosis, largest_activation, largest_over_median, residual_sink):
        assert float(measure(torch.zeros(T, D))) == 0.0


@pytest.mark.parametrize("scale", [1e-15, 1e-9, 1.0, 1e10])
def test_the_spread_over_dimensions_does_not_depend_on_the_scale(scale: float) -> None:
    expected = activation_kurtosis(X)
    torch.testing.assert_close(activation_kurtosis((scale * X).float()), expected.float(), rtol=1e-5, atol=0)


def test_the_median_of_nothing_makes_the_largest_infinite() -> None:
    x = torch.zeros(2, 3, 5)
    x[1, 0, 0] = 2.0
    assert largest_over_median(x).tolist() == [0.0, math.inf]


def test_a_dimension_that_is_large_in_most_tokens_is_a_sink_and_one_large_in_a_token_is_not() -> None:
    x = torch.randn(200, 64, generator=torch.Generator().manual_seed(1))
    plain = float(residual_sink(x))
    massive, sink = x.clone(), x.clone()
    massive[0, 5] = 1000.0
    sink[:, 5] += 20.0
    assert plain < 1.0
    assert float(residual_sink(massive)) == pytest.approx(plain, abs=0.1)
    assert float(residual_sink(sink)) > 5.0
    assert int(dimension_strengths(sink).argmax()) == 5
    assert float(largest_over_median(massive)) > 1000


def test_planted_massive_activations_are_found_at_every_layer_after_them_and_nothing_else_is() -> None:
    model = GPT(GPTConfig(n_layer=2, n_head=2, dim=8, block_size=6, vocab_size=11)).double()
    assert massive_activations(model, random_ids(11, 2, 6)) == []
    with torch.no_grad():
        model.token_embedding.weight[3, 5] = -4000.0
    ids = torch.tensor([[1, 3, 2, 1], [2, 2, 2, 3]])
    found = massive_activations(model, ids)
    assert [(each.layer, each.row, each.position, each.dimension) for each in found] == [
        (layer, row, position, 5) for layer in range(3) for row, position in _by_size(found, layer)
    ]
    assert {(each.row, each.position) for each in found} == {(0, 1), (1, 3)}
    assert all(each.value == pytest.approx(-4000, rel=1e-3) and each.ratio > 1000 for each in found)
    assert len(found) == 6


def _by_size(found: list[MassiveActivation], layer: int) -> list[tuple[int, int]]:
    of_layer = [each for each in found if each.layer == layer]
    return [(each.row, each.position) for each in sorted(of_layer, key=lambda each: -abs(each.value))]


def test_an_entry_must_meet_both_criteria() -> None:
    streams = torch.ones(1, 1, 4, 5, dtype=torch.float64)
    streams[0, 0, 1, 2] = 1000.0
    assert massive_entries(streams) == [MassiveActivation(0, 0, 1, 2, 1000.0, 1000.0)]
    assert massive_entries(streams * 0.1) == []  # 1,000 times the median, but no more than 100
    streams[0, 0, 1, 2] = 999.0
    assert massive_entries(streams) == []
    assert len(massive_entries(streams, least=10.0, times=500.0)) == 1
    streams = torch.zeros_like(streams)
    streams[0, 0, 0, 0] = 101.0
    assert massive_entries(streams)[0].ratio == math.inf


def test_the_one_head_model_has_two_layers_of_the_stream() -> None:
    model = randomise(SingleHeadModel(SingleHeadConfig(dim=8, block_size=6, vocab_size=11)))
    with torch.no_grad():
        model.token_embedding.weight[3, 5] = 4000.0
    assert {each.layer for each in massive_activations(model, torch.tensor([[3, 1]]))} == {0, 1}
