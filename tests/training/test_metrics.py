"""Perplexity over a split does not depend on how the split is cut."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lightning.pytorch.plugins.precision import HalfPrecision

from lightning_gpt.training.metrics import BitsPerByte, MeanLoss


@given(cuts=st.lists(st.integers(1, 99), max_size=6))
def test_total_over_tokens_whatever_the_batches(cuts: list[int]) -> None:
    nll = torch.rand(100, generator=torch.Generator().manual_seed(0)) * 12
    counted = torch.arange(100) % 7 != 0
    nll = torch.where(counted, nll, 0)
    metric = MeanLoss()
    for start, end in zip([0, *sorted(cuts)], [*sorted(cuts), 100], strict=True):
        metric.update(nll[start:end], counted[start:end])
    assert float(metric.compute()) == pytest.approx(float(nll.double().sum() / counted.sum()), abs=1e-12)


def test_is_not_the_mean_of_batch_means() -> None:
    metric = MeanLoss()
    metric.update(torch.tensor([1.0]), torch.tensor([True]))
    metric.update(torch.tensor([3.0, 3.0, 3.0]), torch.tensor([True] * 3))
    assert float(metric.compute()) == 2.5


def test_many_tokens_do_not_lose_the_sum() -> None:
    """In float32 the sum of 3 × 10⁷ losses of 1.1 would be off in the third digit."""
    metric = MeanLoss()
    for _ in range(30):
        metric.update(torch.full((1_000_000,), 1.1), torch.ones(1_000_000, dtype=torch.bool))
    assert float(metric.compute()) == pytest.approx(1.1, abs=1e-7)


@pytest.mark.parametrize("precision", ["bf16-true", "16-true"])
def test_a_module_in_half_precision_keeps_the_sums_type(precision: str) -> None:
    """In bf16 the sum of 500 batches would stop growing early, and in fp16 it would overflow."""
    module = torch.nn.ModuleDict({"layer": torch.nn.Linear(2, 2), "loss": MeanLoss()})
    HalfPrecision(precision).convert_module(module)
    metric = module["loss"]
    assert module["layer"].weight.dtype != torch.float32
    metric.reset()
    nll = torch.rand(500, 2048, generator=torch.Generator().manual_seed(0)) * 12
    for batch in nll:
        metric.update(batch, torch.ones(2048, dtype=torch.bool))
    assert float(metric.compute()) == pytest.approx(float(nll.double().mean()), abs=1e-12)


@given(cuts=st.lists(st.integers(1, 99), max_size=6))
def test_bits_per_byte_are_all_bits_over_all_bytes(cuts: list[int]) -> None:
    nll = torch.rand(100, generator=torch.Generator().manual_seed(0)) * 12
    n_bytes = torch.arange(100) % 5
    metric = BitsPerByte()
    for start, end in zip([0, *sorted(cuts)], [*sorted(cuts), 100], strict=True):
        metric.update(nll[start:end], n_bytes[start:end])
    expected = float((nll.double() / torch.tensor(2.0, dtype=torch.float64).log()).sum() / n_bytes.sum())
    assert float(metric.compute()) == pytest.approx(expected, abs=1e-12)
