"""The parts by themselves against the reference, at sizes and scales that the whole models do not reach."""

from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from lightning_gpt.models.attention.formula import Backend, CausalAttention, attention_pattern, scaled_scores
from lightning_gpt.models.attention.mask import causal_mask
from lightning_gpt.models.attention.multi_head import MultiHeadAttention
from lightning_gpt.models.block import Block
from lightning_gpt.models.ffn.dense import FeedForward
from tests.models.helpers import arrays, property_test, randomise
from tests.reference import formulas

BACKENDS: list[Backend] = ["sdpa", "manual"]
CLOSE = {"rtol": 1e-10, "atol": 1e-10}


def normal(*shape: int, seed: int = 0, scale: float = 1.0) -> torch.Tensor:
    generator = torch.Generator(torch.get_default_device()).manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64) * scale


@pytest.mark.parametrize("time", [0, 1, 2, 7])
def test_the_causal_mask_allows_the_past_and_the_present(time: int) -> None:
    np.testing.assert_array_equal(causal_mask(time).numpy(force=True), formulas.causal_mask(time))


@property_test
@given(
    time=st.integers(1, 9),
    dim=st.integers(1, 7),
    scale=st.sampled_from([0.1, 1.0, 1e2, 1e4]),
    seed=st.integers(0, 10**6),
)
def test_scores_and_pattern_equal_the_reference_also_where_one_score_dwarfs_the_rest(
    time: int, dim: int, scale: float, seed: int
) -> None:
    q, k = normal(time, dim, seed=seed, scale=scale), normal(time, dim, seed=seed + 1)
    scores = scaled_scores(q, k)
    expected = formulas.scaled_scores(q.numpy(force=True), k.numpy(force=True))
    np.testing.assert_allclose(scores.numpy(force=True), expected, rtol=1e-10, atol=1e-10 * scale)
    pattern = attention_pattern(scores, causal_mask(time))
    np.testing.assert_allclose(pattern.numpy(force=True), formulas.causal_pattern(scores.numpy(force=True)), **CLOSE)
    assert (pattern.triu(diagonal=1) == 0).all()


@property_test
@given(
    backend=st.sampled_from(BACKENDS),
    time=st.integers(1, 9),
    heads=st.integers(1, 3),
    width=st.integers(1, 5),
    bias=st.booleans(),
    seed=st.integers(0, 10**6),
)
def test_multi_head_attention_equals_the_reference(
    backend: Backend, time: int, heads: int, width: int, bias: bool, seed: int
) -> None:
    dim = heads * width
    layer = MultiHeadAttention(dim, heads, bias=bias, dropout=0.0, backend=backend).double()
    x = normal(2, time, dim, seed=seed)
    state = arrays(randomise(layer, seed))
    expected = formulas.each(lambda row: formulas.multi_head_attention(row, state, heads), x.numpy(force=True))
    np.testing.assert_allclose(layer(x).numpy(force=True), expected, **CLOSE)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("scale", [0.1, 1.0, 30.0])
def test_the_feed_forward_network_equals_the_reference(scale: float, bias: bool) -> None:
    ffn = randomise(FeedForward(5, bias=bias).double())
    x = normal(7, 5, scale=scale)
    expected = formulas.feed_forward(x.numpy(force=True), arrays(ffn))
    np.testing.assert_allclose(ffn(x).numpy(force=True), expected, **CLOSE)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("offset", [0.0, 1e3])
def test_a_block_equals_the_reference(bias: bool, offset: float) -> None:
    """Also where the stream is far from 0, which the LayerNorms take off and the residual path keeps."""
    attention = MultiHeadAttention(6, 2, bias=bias, dropout=0.0, backend="sdpa")
    norm = partial(nn.LayerNorm, 6, bias=bias)
    block = randomise(Block(attention, FeedForward(6, bias=bias), norm, dropout=0.0).double())
    x = normal(2, 4, 6) + offset
    state = arrays(block)
    expected = formulas.each(lambda row: formulas.block(row, state, 2), x.numpy(force=True))
    np.testing.assert_allclose(block(x).numpy(force=True), expected, **CLOSE)


@pytest.mark.parametrize("backend", BACKENDS)
def test_dropout_of_attention_weights_keeps_their_mean_while_training_and_does_nothing_in_evaluation(
    backend: Backend,
) -> None:
    """One sequence 5,000 times over: the mean is within five standard errors of the value without dropout."""
    q, k, v = (normal(1, 2, 4, 3, seed=seed).expand(5000, -1, -1, -1) for seed in range(3))
    layer, plain = CausalAttention(backend, dropout=0.4), CausalAttention(backend)
    expected = plain.attend(q[:1], k[:1], v[:1])
    torch.manual_seed(0)
    dropped = layer.train().attend(q, k, v)
    error = dropped.std(dim=0) / 5000**0.5
    assert ((dropped.mean(dim=0) - expected[0]).abs() < 5 * error + 1e-9).all()
    assert (dropped.std(dim=0) > 0.01).all()
    torch.testing.assert_close(layer.eval().attend(q, k, v), expected.expand_as(q), rtol=0, atol=1e-12)
