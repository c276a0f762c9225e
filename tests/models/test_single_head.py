"""The one-head model against its formula, and the properties that the formula promises."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from lightning_gpt.errors import CallError
from lightning_gpt.models import SingleHeadConfig, SingleHeadModel
from lightning_gpt.models.attention.formula import Backend
from tests.models.helpers import (
    arrays,
    assert_only_later_logits_change,
    changed_ids,
    property_test,
    random_ids,
    randomise,
)
from tests.reference import formulas

BACKENDS: list[Backend] = ["sdpa", "manual"]
SIZES = [  # dim, block_size, vocab_size, batch, time
    (1, 1, 1, 1, 1),
    (4, 3, 7, 2, 3),
    (6, 5, 13, 1, 4),
    (5, 9, 11, 3, 1),
    (16, 32, 40, 2, 31),
    (64, 8, 50257, 5, 8),
]
CAUSAL = {
    backend: randomise(
        SingleHeadModel(SingleHeadConfig(dim=8, block_size=9, vocab_size=12, attention_backend=backend)).double()
    )
    for backend in BACKENDS
}


def small_model(**changes: object) -> SingleHeadModel:
    sizes = {"dim": 8, "block_size": 6, "vocab_size": 11} | changes
    return randomise(SingleHeadModel(SingleHeadConfig(**sizes)).double())  # type: ignore[arg-type]


# --- the formula -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("dim", "block_size", "vocab_size", "batch", "time"), SIZES)
def test_logits_equal_the_reference(
    dim: int, block_size: int, vocab_size: int, batch: int, time: int, backend: Backend
) -> None:
    model = small_model(dim=dim, block_size=block_size, vocab_size=vocab_size, attention_backend=backend)
    ids = random_ids(vocab_size, batch, time)
    expected = formulas.each(lambda row: formulas.single_head(arrays(model), row).logits, ids.numpy(force=True))
    np.testing.assert_allclose(model(ids).numpy(force=True), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("dim", "block_size", "vocab_size", "batch", "time"), SIZES)
def test_every_intermediate_equals_the_reference(
    dim: int, block_size: int, vocab_size: int, batch: int, time: int
) -> None:
    model = small_model(dim=dim, block_size=block_size, vocab_size=vocab_size)
    ids = random_ids(vocab_size, batch, time)
    with torch.no_grad(), model.record() as trace:
        model(ids)
    state = arrays(model)
    names = {
        "embedding": "x",
        "norm": "n",
        "attention.q": "q",
        "attention.k": "k",
        "attention.v": "v",
        "attention.scores": "scores",
        "attention.pattern": "pattern",
        "attention.head_output": "mixed",
        "residual": "y",
        "logits": "logits",
    }
    for row, sequence in enumerate(ids.numpy(force=True)):
        reference = formulas.single_head(state, sequence)
        np.testing.assert_array_equal(trace["attention.mask"].numpy(force=True), reference.mask)
        masked = trace["attention.scores"][row].masked_fill(~trace["attention.mask"], -torch.inf)
        np.testing.assert_allclose(masked.numpy(force=True), reference.masked_scores, rtol=1e-10, atol=1e-10)
        for name, letter in names.items():
            expected = getattr(reference, letter)
            np.testing.assert_allclose(
                trace[name][row].numpy(force=True), expected, rtol=1e-10, atol=1e-10, err_msg=name
            )


def test_the_loss_equals_the_reference_cross_entropy() -> None:
    model = small_model()
    ids, targets = random_ids(11, 3, 6), random_ids(11, 3, 6, seed=2)
    logits = formulas.each(lambda row: formulas.single_head(arrays(model), row).logits, ids.numpy(force=True))
    expected = formulas.cross_entropy(logits.reshape(-1, 11), targets.flatten().numpy(force=True))
    assert model.loss(ids, targets).item() == pytest.approx(expected, abs=1e-10)


def test_both_backends_have_equal_gradients() -> None:
    gradients = []
    for backend in BACKENDS:
        model = small_model(attention_backend=backend)
        model.loss(random_ids(11, 3, 6), random_ids(11, 3, 6, seed=2)).backward()
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-10, atol=1e-10)


# --- the attention pattern -------------------------------------------------------------------------------------


@property_test
@given(
    dim=st.integers(1, 12),
    time=st.integers(1, 10),
    batch=st.integers(1, 3),
    std=st.sampled_from([0.02, 0.5, 3.0, 30.0]),
    seed=st.integers(0, 10**6),
)
def test_rows_of_the_pattern_sum_to_one_none_is_negative_and_none_looks_ahead(
    dim: int, time: int, batch: int, std: float, seed: int
) -> None:
    model = randomise(SingleHeadModel(SingleHeadConfig(dim=dim, block_size=10, vocab_size=9)), seed, std)
    with torch.no_grad(), model.record(["attention.pattern"]) as trace:
        model(random_ids(9, batch, time, seed=seed))
    pattern = trace["attention.pattern"]
    assert pattern.shape == (batch, time, time)
    torch.testing.assert_close(pattern.sum(dim=-1), torch.ones(batch, time), rtol=0, atol=1e-5)
    assert (pattern >= 0).all()
    assert (pattern.triu(diagonal=1) == 0).all()


def test_the_defaults_are_those_of_the_design() -> None:
    assert SingleHeadConfig() == SingleHeadConfig(dim=64, block_size=8, vocab_size=50257)


def test_with_fresh_weights_the_pattern_is_nearly_uniform_over_the_allowed_positions() -> None:
    torch.manual_seed(0)
    model = SingleHeadModel(SingleHeadConfig())
    with torch.no_grad(), model.record(["attention.pattern"]) as trace:
        model(random_ids(50257, 5, 8))
    uniform = torch.as_tensor(formulas.uniform_pattern(np.zeros((8, 8)))).float()
    deviation = (trace["attention.pattern"] / uniform).where(uniform > 0, 1.0) - 1
    assert deviation.abs().max() < 0.15
    assert deviation.abs().max() > 1e-6, "exactly uniform: the scores do not depend on the input"


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_with_fresh_weights_the_loss_is_that_of_guessing_within_one_percent(seed: int) -> None:
    torch.manual_seed(seed)
    model = SingleHeadModel(SingleHeadConfig())
    loss = model.loss(random_ids(50257, 5, 8), random_ids(50257, 5, 8, seed=seed + 2))
    assert loss.item() == pytest.approx(math.log(50257), rel=0.01)


@property_test
@given(case=changed_ids(vocab_size=12, block_size=9), backend=st.sampled_from(BACKENDS))
def test_a_change_at_one_position_changes_every_logit_row_from_there_on_and_none_before(
    case: tuple[torch.Tensor, torch.Tensor, int], backend: Backend
) -> None:
    ids, changed, position = case
    with torch.no_grad():
        assert_only_later_logits_change(CAUSAL[backend](ids), CAUSAL[backend](changed), position)


# --- the parameters --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["w_q", "w_k", "w_v", "w_0"])
def test_each_projection_is_a_square_matrix_without_bias(name: str) -> None:
    layer = getattr(SingleHeadModel(SingleHeadConfig(dim=10, vocab_size=7)).attention, name)
    assert {key: tuple(value.shape) for key, value in layer.named_parameters()} == {"weight": (10, 10)}


def test_the_unembedding_is_the_token_embedding_parameter() -> None:
    model = SingleHeadModel(SingleHeadConfig(dim=10, vocab_size=7))
    assert model.unembedding is model.token_embedding.weight
    assert sorted(name for name, _ in model.named_parameters()) == [
        "attention.w_0.weight",
        "attention.w_k.weight",
        "attention.w_q.weight",
        "attention.w_v.weight",
        "norm.bias",
        "norm.weight",
        "positions.weight",
        "token_embedding.weight",
    ]


def test_fresh_weights_are_normal_with_deviation_0_02_and_the_layer_norm_is_the_identity() -> None:
    torch.manual_seed(0)
    model = SingleHeadModel(SingleHeadConfig(block_size=128, vocab_size=500))
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | nn.Embedding):
            weight = module.weight
            assert weight.std().item() == pytest.approx(0.02, rel=0.05), name
            assert abs(weight.mean().item()) < 5 * 0.02 / math.sqrt(weight.numel()), name
    assert (model.norm.weight == 1).all()
    assert (model.norm.bias == 0).all()


# --- wrong calls -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("field", ["dim", "block_size", "vocab_size"])
@pytest.mark.parametrize("value", [0, -3, 2.5, "8"])
def test_a_size_that_is_no_positive_whole_number_is_refused_by_name(field: str, value: object) -> None:
    with pytest.raises(CallError, match=rf"{field} is {value!r}; it must be a whole number from 1 to"):
        SingleHeadConfig(**{field: value})  # type: ignore[arg-type]


def test_an_unknown_attention_backend_is_refused() -> None:
    with pytest.raises(CallError, match="attention_backend"):
        SingleHeadConfig(attention_backend="flash")  # type: ignore[arg-type]


def test_a_sequence_longer_than_block_size_is_refused_with_the_limit_and_a_remedy() -> None:
    with pytest.raises(CallError, match=r"7 tokens.*block_size 6.*shorten the input"):
        small_model()(random_ids(11, 1, 7))
