"""One vector at a time: the same product as of many."""

import threading
import time

import pytest
import torch
from torch import nn

from lightning_gpt.models import GPT, GPTConfig
from lightning_gpt.models.layer import Linear
from lightning_gpt.models.one_vector import is_one_vector, times_vector
from tests.models.helpers import random_ids

pytestmark = pytest.mark.cpu("products of one vector by the CPU's own code")


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(64,), (1, 64), (1, 1, 64)])
def test_one_vector_has_the_product_of_many(shape: tuple[int, ...], bias: bool) -> None:
    torch.manual_seed(0)
    layer, x = Linear(64, 600, bias=bias, maps=("stream", "hidden")).eval(), torch.randn(shape)
    expected = nn.functional.linear(
        x.double(), layer.weight.double(), None if layer.bias is None else layer.bias.double()
    )
    with torch.no_grad():
        assert is_one_vector(x, layer.weight)
        torch.testing.assert_close(layer(x).double(), expected, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(times_vector(layer.weight, x, layer.bias), layer(x), rtol=0, atol=0)


@pytest.mark.parametrize("enabled", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(64,), (1, 1, 64)])
def test_one_vector_in_bf16_is_as_exact_as_that_of_onednn(shape: tuple[int, ...], bias: bool, enabled: bool) -> None:
    """And oneDNN is afterwards what it was before."""
    torch.manual_seed(0)
    layer = Linear(64, 600, bias=bias, maps=("stream", "hidden")).eval().bfloat16()
    x = torch.randn(shape, dtype=torch.bfloat16)
    exact = nn.functional.linear(x.double(), layer.weight.double(), layer.bias.double() if bias else None)
    with torch.no_grad():
        assert is_one_vector(x, layer.weight)
        theirs = nn.functional.linear(x, layer.weight, layer.bias)
        before, torch.backends.mkldnn.enabled = torch.backends.mkldnn.enabled, enabled
        try:
            ours, after = layer(x), torch.backends.mkldnn.enabled
        finally:
            torch.backends.mkldnn.enabled = before
    assert after == enabled
    assert ours.shape == exact.shape
    assert (ours.double() - exact).norm() <= 1.05 * (theirs.double() - exact).norm()


def test_two_threads_leave_onednn_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    """The second begins inside the first's product and ends after it."""
    weight, x, linear = torch.randn(600, 64).bfloat16(), torch.randn(64).bfloat16(), nn.functional.linear
    seconds, began = iter((0.05, 0.1)), threading.Event()

    def slowly(*given: torch.Tensor | None) -> torch.Tensor:
        began.set()
        time.sleep(next(seconds))
        return linear(*given)  # type: ignore[arg-type]

    before = torch.backends.mkldnn.enabled
    monkeypatch.setattr(nn.functional, "linear", slowly)
    threads = [threading.Thread(target=times_vector, args=(weight, x)) for _ in range(2)]
    threads[0].start()
    began.wait()
    threads[1].start()
    for thread in threads:
        thread.join()
    after, torch.backends.mkldnn.enabled = torch.backends.mkldnn.enabled, before
    assert after == before


@pytest.mark.parametrize(
    "x", [torch.randn(2, 64), torch.randn(1, 64, dtype=torch.float64)], ids=["two vectors", "another precision"]
)
def test_anything_else_is_an_ordinary_product(x: torch.Tensor) -> None:
    with torch.no_grad():
        assert not is_one_vector(x, torch.randn(600, 64))


def test_with_a_gradient_it_is_an_ordinary_product() -> None:
    layer, x = Linear(64, 600, bias=True, maps=("stream", "hidden")).eval(), torch.randn(1, 64)
    assert not is_one_vector(x, layer.weight)
    layer(x).sum().backward()
    torch.testing.assert_close(layer.weight.grad, x.expand(600, 64))


def test_cached_logits_of_one_prompt_equal_uncached_ones_at_a_size_where_it_is_used() -> None:
    torch.manual_seed(0)
    model = GPT(GPTConfig(n_layer=2, n_head=4, dim=256, block_size=32, vocab_size=1000)).eval()
    ids = random_ids(1000, 1, 12)
    with torch.no_grad():
        whole, cache = model(ids), model.new_cache(12)
        for place in range(12):
            step = model.next_logits(ids[:, place : place + 1], cache=cache)
            torch.testing.assert_close(step, whole[:, place], rtol=1e-5, atol=1e-5)
