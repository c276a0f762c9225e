"""Every norm against its formula, in value and gradient; norms of queries and keys within attention."""

import math
from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_gpt.models.attention.mixer import attentions
from lightning_gpt.models.norms import ScaleNorm, norms
from lightning_gpt.models.positions.scheme import NoPositions
from lightning_gpt.models.registry import Given
from tests.models.helpers import property_test, randomise
from tests.models.slopes import Array, assert_equals_reference
from tests.reference import attention_kinds, formulas, parts

State = Mapping[str, Array]


def by_formula(name: str, x: Array, state: State, prefix: str = "", **options: float) -> Array:
    """What the norm of that name makes of ``x``, its parameters in ``state`` under ``prefix``."""
    weight, bias = state.get(f"{prefix}weight"), state.get(f"{prefix}bias")
    if name == "layer":
        assert weight is not None
        return formulas.layer_norm(x, weight, bias, **options)
    if name == "rms":
        assert weight is not None
        return parts.rms_norm(x, weight, **options)
    if name == "rms_plus_one":
        assert weight is not None
        return parts.rms_norm(x, 1 + weight, **options)
    if name == "scale":
        return parts.scale_norm(x, float(state[f"{prefix}gain"]), **options)
    if name in ("dynamic_tanh", "dynamic_erf"):
        assert weight is not None
        alpha, shift = float(state[f"{prefix}steepness"]), float(state.get(f"{prefix}shift", 0.0))
        return parts.squashed(x, math.tanh if name == "dynamic_tanh" else math.erf, alpha, shift, weight, bias)
    assert name == "none"
    return x


def normal(*shape: int, scale: float = 1.0) -> torch.Tensor:
    return scale * torch.randn(
        *shape, generator=torch.Generator(torch.get_default_device()).manual_seed(1), dtype=torch.float64
    )


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("name", norms.names)
def test_a_norm_and_its_gradient_equal_the_formula(name: str, bias: bool, scale: float) -> None:
    norm = randomise(norms.make(name, dim=6, bias=bias)).double()
    x = normal(2, 5, 6, scale=scale)
    has_eps = hasattr(norm, "eps")
    if scale == 1e-3 and has_eps:  # so small that ε decides
        norm.eps = 0.1
    options = {"eps": norm.eps} if has_eps else {}
    assert_equals_reference(norm, lambda row, state: by_formula(name, row, state, **options), x)


@pytest.mark.parametrize(("choice", "eps"), [("layer", 1e-5), ("rms", 1e-6), ({"kind": "rms", "eps": 0.5}, 0.5)])
def test_epsilon_is_what_was_chosen(choice: Given, eps: float) -> None:
    norm = norms.make(choice, dim=4, bias=True).double()
    x = normal(1, 4, scale=1e-3)
    spread = x.var(unbiased=False) if choice == "layer" else (x**2).mean()
    centred = x - x.mean() if choice == "layer" else x
    torch.testing.assert_close(norm(x), centred / (spread + eps).sqrt(), rtol=1e-9, atol=1e-12)


def test_without_biases_a_layer_norm_has_one_vector_of_parameters() -> None:
    assert [name for name, _ in norms.make("layer", dim=3, bias=False).named_parameters()] == ["weight"]


@property_test
@given(scale=st.floats(1e-3, 1e3), seed=st.integers(0, 10**6))
def test_scale_norm_gives_every_vector_the_same_length_at_first_the_root_of_the_width(scale: float, seed: int) -> None:
    x = (
        torch.randn(7, 9, generator=torch.Generator(torch.get_default_device()).manual_seed(seed), dtype=torch.float64)
        * scale
    )
    torch.testing.assert_close(ScaleNorm(9).double()(x).norm(dim=-1), torch.full((7,), 3.0, dtype=torch.float64))


@pytest.mark.parametrize("name", norms.names)
def test_a_vector_of_zeros_stays_finite_in_value_and_gradient(name: str) -> None:
    x = torch.zeros(1, 4, requires_grad=True)
    y = norms.make(name, dim=4, bias=True)(x)
    y.sum().backward()
    assert x.grad is not None
    assert y.isfinite().all()
    assert x.grad.isfinite().all()


@pytest.mark.parametrize("n_kv_head", [4, 2, 1])
@pytest.mark.parametrize("name", norms.names)
def test_queries_and_keys_are_normed_as_the_formula_says(name: str, n_kv_head: int) -> None:
    given_to_all: dict[str, Any] = {"dim": 16, "n_head": 4, "bias": True, "dropout": 0.0, "backend": "sdpa"}
    layer = attentions.make(
        {"kind": "full", "n_kv_head": n_kv_head}, **given_to_all, qk_norm=name, layer=0, positions=NoPositions()
    )
    randomise(layer).double()

    def reference(x: Array, state: State) -> Array:
        norm_q, norm_k = (partial(_normed, name, state, prefix) for prefix in ("q_norm.", "k_norm."))
        head = attention_kinds.softmax_head()
        return attention_kinds.layer(x, state, 4, head, n_kv_head=n_kv_head, norm_q=norm_q, norm_k=norm_k)

    assert_equals_reference(layer, reference, normal(1, 6, 16))


def _normed(name: str, state: State, prefix: str, x: Array) -> Array:
    return by_formula(name, x, state, prefix)


def test_the_reference_norms_are_told_apart() -> None:
    """What the tests above compare with is another function for each name."""
    x, state = normal(3, 6).numpy(force=True), {"weight": np.ones(6), "gain": np.array(1.0), "steepness": np.array(0.5)}
    made = [by_formula(name, x, state) for name in norms.names]
    assert all(not np.allclose(made[i], made[j]) for i in range(len(made)) for j in range(i))
