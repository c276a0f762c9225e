"""Every feed-forward network against its formula, in value and gradient, and its width."""

import numpy as np
import pytest
import torch

from lightning_gpt.errors import CallError
from lightning_gpt.models import GPT, GPTConfig
from lightning_gpt.models.ffn import dense, gated
from lightning_gpt.models.ffn.dense import FeedForward, ffns
from tests.models.helpers import arrays, randomise
from tests.reference import experts as reference

KINDS = sorted(reference.ACTIVATIONS)
CLOSE = {"rtol": 1e-10, "atol": 1e-10}


def normal(*shape: int, seed: int = 0, scale: float = 1.0) -> torch.Tensor:
    return (
        torch.randn(
            *shape, generator=torch.Generator(torch.get_default_device()).manual_seed(seed), dtype=torch.float64
        )
        * scale
    )


def test_the_reference_has_every_dense_network_of_the_package() -> None:
    ours = [ffns.get(name) for name in KINDS]
    assert {kind.__module__ for kind in ours} == {dense.__name__, gated.__name__}
    defined = [
        kind
        for kind in [*vars(dense).values(), *vars(gated).values()]
        if isinstance(kind, type) and issubclass(kind, FeedForward)
    ]
    assert set(defined) == {*ours, gated.GatedFeedForward}


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("scale", [0.1, 1.0, 30.0])
@pytest.mark.parametrize("kind", KINDS)
def test_values_equal_the_formula(kind: str, scale: float, bias: bool) -> None:
    ffn = randomise(ffns.make(kind, dim=5, bias=bias).double())
    x = normal(2, 7, 5, scale=scale)
    state = arrays(ffn)
    expected = [[reference.feed_forward(token, state, kind) for token in row] for row in x.numpy(force=True)]
    np.testing.assert_allclose(ffn(x).numpy(force=True), expected, **CLOSE)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_those_of_the_formula(kind: str) -> None:
    ffn = randomise(ffns.make(kind, dim=5, bias=True).double())
    x, weights = normal(6, 5), normal(6, 5, seed=1)
    (ffn(x) * weights).sum().backward()

    def value(state: reference.State) -> float:
        return float(
            sum(
                reference.feed_forward(t, state, kind) @ w
                for t, w in zip(x.numpy(force=True), weights.numpy(force=True), strict=True)
            )
        )

    for name, parameter in ffn.named_parameters():
        direction = normal(*parameter.shape, seed=2)
        assert parameter.grad is not None
        along = float((parameter.grad * direction).sum())
        assert along == pytest.approx(
            reference.derivative_along(value, arrays(ffn), name, direction.numpy(force=True)), rel=1e-6
        )


@pytest.mark.parametrize("kind", KINDS)
def test_the_hidden_width_may_be_given(kind: str) -> None:
    ffn = ffns.make({"kind": kind, "hidden": 3}, dim=5, bias=True)
    assert isinstance(ffn, FeedForward)
    assert ffn.down.weight.shape == (5, 3)
    assert ffn.up.weight.shape == (3 * len(ffn.pieces), 5)


@pytest.mark.parametrize("kind", ["swiglu", "geglu"])
@pytest.mark.parametrize("dim", [64, 256, 768, 1600, 4096])
def test_gated_networks_have_the_parameters_of_the_others_to_within_two_percent(kind: str, dim: int) -> None:
    with torch.device("meta"):
        gated, plain = (ffns.make(name, dim=dim, bias=False) for name in (kind, "gelu"))
    assert isinstance(gated, FeedForward)
    assert gated.down.in_features % 8 == 0
    sizes = [sum(parameter.numel() for parameter in ffn.parameters()) for ffn in (gated, plain)]
    assert sizes[0] == pytest.approx(sizes[1], rel=0.02)


def test_a_width_of_nothing_is_refused() -> None:
    with pytest.raises(CallError, match="ffn hidden is 0; it must be a whole number from 1 to 1,048,576"):
        GPT(GPTConfig(n_layer=1, n_head=1, dim=4, vocab_size=5, ffn={"kind": "relu", "hidden": 0}))
