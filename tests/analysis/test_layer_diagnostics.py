"""The layer diagnostics: closed cases, and every formula against its plain float64 version."""

import math
from collections.abc import Callable

import hypothesis
import numpy as np
import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor

from lightning_gpt.analysis import attention_statistics, similarity, spectral
from tests.models.helpers import property_test
from tests.reference import depth as reference

ALIKE = torch.tensor([[1.0, -2.0, 3.0]]).repeat(5, 1).double()
ORTHOGONAL = (2 * torch.eye(4)).double()
UNIFORM = torch.full((6, 6), 1 / 6).double()
EACH_ITSELF = torch.eye(6).double()
CAUSAL_UNIFORM = torch.tril(torch.ones(6, 6)).double() / torch.arange(1, 7)[:, None]
ALL_FIRST = torch.zeros(6, 6).double().index_fill(1, torch.tensor([0]), 1.0)


def random_stream(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def random_pattern(seed: int, time: int, causal: bool = True) -> Tensor:
    scores = 3 * random_stream(seed, 2, time, time)
    hidden = torch.ones(time, time, dtype=torch.bool).triu(1) if causal else torch.zeros(time, time, dtype=torch.bool)
    return scores.masked_fill(hidden, -torch.inf).softmax(dim=-1)


@pytest.mark.parametrize(
    ("formula", "x", "expected"),
    [
        (similarity.token_cosine, ALIKE, 1.0),
        (similarity.token_cosine, ORTHOGONAL, 0.0),
        (similarity.token_cosine, torch.tensor([[1.0, 0.0], [-3.0, 0.0]]), -1.0),
        (similarity.token_cosine, torch.zeros(3, 4), 0.0),
        (similarity.rank_residual, ALIKE, 0.0),
        (similarity.rank_residual, torch.tensor([[1.0, 2.0], [-1.0, -2.0]]), 1.0),
        (similarity.rank_residual, ORTHOGONAL, math.sqrt(3 / 4)),  # the mean takes 1/t of the square
        (similarity.rank_residual, torch.zeros(3, 4), 0.0),
        (similarity.effective_rank, ALIKE, 1.0),
        (similarity.effective_rank, ORTHOGONAL, 4.0),
        (similarity.effective_rank, torch.diag(torch.tensor([3.0, 3.0, 0.0])), 2.0),
        (similarity.activation_rms, torch.full((3, 4), -2.0), 2.0),
    ],
)
def test_closed_cases_of_streams(formula: Callable[[Tensor], Tensor], x: Tensor, expected: float) -> None:
    assert float(formula(x)) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("x", "pattern", "expected"),
    [
        (ALIKE, UNIFORM[:5, :5] * 6 / 5, 0.0),
        (torch.randn(6, 3), EACH_ITSELF.float(), 0.0),  # whatever the tokens are
        (ORTHOGONAL, torch.full((4, 4), 0.25).double(), 0.75),  # ½·t·(t−1)/t·2c² / (t·c²)
    ],
)
def test_closed_cases_of_the_dirichlet_energy(x: Tensor, pattern: Tensor, expected: float) -> None:
    assert float(similarity.dirichlet_energy(x, pattern)) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("formula", "pattern", "expected"),
    [
        (attention_statistics.attention_entropy, UNIFORM, math.log(6)),
        (attention_statistics.attention_entropy, EACH_ITSELF, 0.0),
        (attention_statistics.attention_entropy, CAUSAL_UNIFORM, attention_statistics.uniform_causal_entropy(6)),
        (attention_statistics.attention_distance, EACH_ITSELF, 0.0),
        (attention_statistics.attention_distance, ALL_FIRST, 2.5),
        (attention_statistics.attention_distance, EACH_ITSELF.roll(-1, 1).tril(), 5 / 6),
        (attention_statistics.first_token_share, ALL_FIRST, 1.0),
        (attention_statistics.first_token_share, UNIFORM, 1 / 6),
        (attention_statistics.first_token_share, EACH_ITSELF, 0.0),
        (spectral.spectral_gap, UNIFORM, 1.0),
        (spectral.spectral_gap, EACH_ITSELF, 0.0),
        (spectral.spectral_gap, ALL_FIRST, 1.0),
        (spectral.spectral_gap, CAUSAL_UNIFORM, 0.5),
        (spectral.second_singular_value, UNIFORM, 0.0),
        (spectral.second_singular_value, ALL_FIRST, 0.0),
        (spectral.second_singular_value, EACH_ITSELF, 1.0),
    ],
)
def test_closed_cases_of_patterns(formula: Callable[[Tensor], Tensor], pattern: Tensor, expected: float) -> None:
    assert float(formula(pattern)) == pytest.approx(expected, abs=1e-6)


def test_closed_cases_of_value_projections() -> None:
    """A head that hands the values on unchanged smooths along all directions; one that negates them sharpens."""
    whole = torch.eye(4)[None]
    kept = spectral.value_projection_eigenvalues(spectral.small_value_projection(whole, whole))
    negated = spectral.value_projection_eigenvalues(spectral.small_value_projection(whole, -0.5 * whole))
    assert float(spectral.positive_share(kept)) == 1.0
    assert float(spectral.positive_share(negated)) == 0.0
    assert float(spectral.spectral_radius(negated)) == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("eigenvalues", "expected"),
    [
        ([3.0, -1.0, 2j, -2j], 7 / 8),
        ([-0.5, 0.5], 1 / 2),
        ([-3.0, -0.5, 0.5], 7 / 8),  # −3 makes the shared part −2 times as large
        ([-2.0], 0.0),  # it only changes its sign
        ([-0.5 + 2j, -0.5 - 2j, -0.5 + 0.1j, -0.5 - 0.1j], math.sqrt(4.25) / (math.sqrt(4.25) + math.sqrt(0.26))),
        ([1e-20, -1e-20], 1 / 2),
        ([0.0, 0.0], 0.0),
    ],
)
def test_the_positive_share_is_of_what_amplifies_the_shared_part(eigenvalues: list[complex], expected: float) -> None:
    spectrum = torch.tensor(eigenvalues, dtype=torch.complex128)
    assert float(spectral.positive_share(spectrum)) == pytest.approx(expected, abs=1e-6)


def test_negative_weights_count_by_their_size_in_the_spectral_gap() -> None:
    """Also in a triangular pattern, whose eigenvalues are its diagonal."""
    pattern = torch.tensor([[1.0, 0, 0], [1.7, -0.7, 0], [0.4, 0.4, 0.2]]).double()
    assert float(spectral.spectral_gap(pattern)) == pytest.approx(0.3)
    assert float(spectral.spectral_gap(pattern.mT)) == pytest.approx(0.3), "the general solver"


@hypothesis.given(seed=st.integers(0, 1000), time=st.integers(2, 9), causal=st.booleans())
@property_test
def test_the_second_singular_value_has_the_bounds_that_its_documentation_gives(
    seed: int, time: int, causal: bool
) -> None:
    pattern = random_pattern(seed, time, causal)
    found = spectral.second_singular_value(pattern)
    assert (found <= math.sqrt(time / 2)).all()
    from_equal_rows = torch.linalg.matrix_norm(pattern - pattern.mean(dim=-2, keepdim=True), ord=2)
    assert (found <= from_equal_rows + 1e-9).all()


@pytest.mark.parametrize("time", [2, 4, 10])
def test_the_second_singular_value_is_largest_where_tokens_attend_in_two_halves(time: int) -> None:
    halves = torch.eye(2).double().repeat(time // 2, 1)  # causal: tokens 0 and 1 attend to themselves
    pattern = torch.nn.functional.pad(halves, (0, time - 2))
    assert float(spectral.second_singular_value(pattern)) == pytest.approx(math.sqrt(time / 2))


@hypothesis.given(seed=st.integers(0, 1000), time=st.integers(2, 9), dim=st.integers(1, 7))
@property_test
def test_streams_equal_the_reference_and_stay_in_range(seed: int, time: int, dim: int) -> None:
    x = random_stream(seed, 3, time, dim)
    for name in ("token_cosine", "rank_residual", "effective_rank", "activation_rms"):
        expected = [getattr(reference, name)(one) for one in x.numpy()]
        np.testing.assert_allclose(getattr(similarity, name)(x), expected, rtol=1e-9, atol=1e-12, err_msg=name)
    assert (similarity.token_cosine(x) >= -1 / (time - 1) - 1e-12).all()
    assert (similarity.rank_residual(x) <= 1).all()
    assert (similarity.effective_rank(x) <= min(time, dim) + 1e-9).all()
    torch.testing.assert_close(similarity.token_cosine(5 * x), similarity.token_cosine(x))
    torch.testing.assert_close(similarity.activation_rms(5 * x), 5 * similarity.activation_rms(x))


@hypothesis.given(seed=st.integers(0, 1000), time=st.integers(2, 9), causal=st.booleans())
@property_test
def test_patterns_equal_the_reference(seed: int, time: int, causal: bool) -> None:
    pattern = random_pattern(seed, time, causal)
    for module, name in (
        (attention_statistics, "attention_entropy"),
        (attention_statistics, "first_token_share"),
        (spectral, "spectral_gap"),
        (spectral, "second_singular_value"),
    ):
        expected = [getattr(reference, name)(one) for one in pattern.numpy()]
        np.testing.assert_allclose(getattr(module, name)(pattern), expected, rtol=1e-6, atol=1e-7, err_msg=name)
    if causal:
        expected = [reference.attention_distance(one) for one in pattern.numpy()]
        np.testing.assert_allclose(attention_statistics.attention_distance(pattern), expected, rtol=1e-9)
        assert (
            attention_statistics.attention_entropy(pattern) < attention_statistics.uniform_causal_entropy(time)
        ).all()
    x = random_stream(seed, 2, time, 4)
    expected = [reference.dirichlet_energy(*each) for each in zip(x.numpy(), pattern.numpy(), strict=True)]
    np.testing.assert_allclose(similarity.dirichlet_energy(x, pattern), expected, rtol=1e-9)


def test_keys_that_are_no_tokens_come_first_and_count_no_distance() -> None:
    """One extra key that gets nothing changes neither distance nor share; the entropy is of the whole row."""
    with_key = torch.cat([torch.zeros(2, 5, 1).double(), random_pattern(3, 5)], dim=-1)
    for name in ("attention_entropy", "attention_distance", "first_token_share"):
        formula = getattr(attention_statistics, name)
        torch.testing.assert_close(formula(with_key), formula(with_key[..., 1:]))


@hypothesis.given(seed=st.integers(0, 1000), tokens=st.integers(3, 12))
@property_test
def test_cka_equals_its_definition_by_gram_matrices(seed: int, tokens: int) -> None:
    x, y = random_stream(seed, tokens, 5), random_stream(seed + 1, tokens, 3)
    value = float(similarity.linear_cka(x, y))
    assert value == pytest.approx(reference.linear_cka(x.numpy(), y.numpy()), rel=1e-9)
    assert 0 <= value <= 1 + 1e-12
    rotation = torch.linalg.qr(random_stream(seed, 5, 5)).Q
    assert float(similarity.linear_cka(x, 7 * x @ rotation + 2)) == pytest.approx(1.0)
    assert float(similarity.linear_cka(x, torch.ones_like(x))) == 0.0


def test_value_eigenvalues_are_those_of_the_whole_product() -> None:
    values, output = random_stream(0, 3, 8, 2), random_stream(1, 3, 2, 8)
    ours = spectral.value_projection_eigenvalues(spectral.small_value_projection(values, output))
    for head in range(3):
        whole = reference.value_spectrum(values[head].numpy(), output[head].numpy())
        np.testing.assert_allclose(np.sort_complex(ours[head].numpy()), np.sort_complex(whole[:2]), atol=1e-9)
        assert abs(whole[2:]).max() < 1e-6, "the product has rank 2"


def test_effective_rank_of_nearly_equal_tokens_is_nearly_one_in_fp32() -> None:
    x = (torch.ones(64, 32) + 1e-6 * torch.randn(64, 32)).float()
    assert float(similarity.effective_rank(x)) == pytest.approx(1.0, abs=1e-3)
