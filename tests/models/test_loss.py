"""The fused output head and cross-entropy against torch's own, which holds all the logits."""

import math
from collections.abc import Callable
from unittest import mock

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor, nn

from lightning_gpt.models import GPT, GPTConfig, LanguageModel, SingleHeadConfig, SingleHeadModel
from lightning_gpt.models import head as head_module
from lightning_gpt.models.chunked_softmax import Chunks, VocabularyFirst
from lightning_gpt.models.head import IGNORED, linear_cross_entropy, token_nll
from lightning_gpt.models.tokens_first import TokensFirst
from tests.models.helpers import TensorSizes, property_test, random_ids, randomise
from tests.reference import formulas


def chunks_of(size: int) -> mock._patch:
    """A context in which the loss works through ``size`` tokens at a time."""
    return mock.patch.object(head_module, "chunk_size", return_value=size)


def plain(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """The same loss, by way of all the logits."""
    return F.cross_entropy(F.linear(hidden, weight).flatten(0, -2), targets.flatten(), ignore_index=IGNORED)


def problem(
    tokens: int = 7, vocab_size: int = 5, dim: int = 3, *, seed: int = 0, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor, Tensor]:
    """Random hidden states and unembedding that want gradients, and targets."""
    generator = torch.Generator(torch.get_default_device()).manual_seed(seed)
    hidden = torch.randn(tokens, dim, generator=generator, dtype=dtype).requires_grad_()
    weight = torch.randn(vocab_size, dim, generator=generator, dtype=dtype).requires_grad_()
    return hidden, weight, torch.randint(vocab_size, (tokens,), generator=generator)


def gradients(loss: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad(loss, inputs)


# --- values and gradients --------------------------------------------------------------------------------------


@property_test
@given(
    tokens=st.integers(1, 20),
    vocab_size=st.integers(1, 12),
    dim=st.integers(1, 6),
    chunk=st.integers(1, 21),
    ignored=st.lists(st.booleans(), min_size=20, max_size=20),
    seed=st.integers(0, 10**6),
)
def test_value_and_both_gradients_equal_the_plain_computation(
    tokens: int, vocab_size: int, dim: int, chunk: int, ignored: list[bool], seed: int
) -> None:
    hidden, weight, targets = problem(tokens, vocab_size, dim, seed=seed)
    targets[torch.tensor(ignored[:tokens])] = IGNORED
    assume((targets != IGNORED).any())
    with chunks_of(chunk):
        loss = linear_cross_entropy(hidden, weight, targets)
    expected = plain(hidden, weight, targets)
    torch.testing.assert_close(loss, expected, rtol=1e-10, atol=1e-10)
    ours, theirs = gradients(loss, hidden, weight), gradients(expected, hidden, weight)
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


@property_test
@given(
    layout=st.sampled_from([VocabularyFirst, TokensFirst]),
    label_smoothing=st.sampled_from([0.0, 0.1, 0.9]),
    z_loss=st.sampled_from([0.0, 1e-3, 0.5]),
    chunk=st.integers(1, 9),
    seed=st.integers(0, 10**6),
)
def test_both_layouts_equal_the_plain_computation_also_with_label_smoothing_and_z_loss(
    layout: type[Chunks], label_smoothing: float, z_loss: float, chunk: int, seed: int
) -> None:
    hidden, weight, targets = problem(8, 6, 4, seed=seed)
    targets[seed % 8] = IGNORED
    with chunks_of(chunk), mock.patch.object(head_module, "chunks_for", layout):
        loss = linear_cross_entropy(hidden, weight, targets, label_smoothing=label_smoothing, z_loss=z_loss)
        with torch.no_grad():
            value = linear_cross_entropy(hidden, weight, targets, label_smoothing=label_smoothing, z_loss=z_loss)
    logits = hidden @ weight.T
    expected = F.cross_entropy(logits, targets, ignore_index=IGNORED, label_smoothing=label_smoothing)
    expected = expected + z_loss * (logits.logsumexp(-1)[targets != IGNORED] ** 2).mean()
    torch.testing.assert_close([loss, value], [expected, expected], rtol=1e-10, atol=1e-10)
    ours, theirs = gradients(loss, hidden, weight), gradients(expected, hidden, weight)
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("tokens", [1, 3, 4, 5, 8, 9])
def test_the_value_equals_the_reference_on_both_sides_of_the_chunk_border(tokens: int) -> None:
    hidden, weight, targets = problem(tokens)
    expected = formulas.cross_entropy(hidden.numpy(force=True) @ weight.numpy(force=True).T, targets.numpy(force=True))
    with chunks_of(4):
        assert linear_cross_entropy(hidden, weight, targets).item() == pytest.approx(expected, abs=1e-10)


def test_leading_axes_and_non_contiguous_inputs_make_no_difference() -> None:
    hidden, weight, targets = problem(12)
    cube = hidden.detach().view(3, 4, 3).transpose(0, 1).requires_grad_()
    grid = targets.view(3, 4).T
    with chunks_of(5):
        loss = linear_cross_entropy(cube, weight, grid)
        assert loss.shape == ()
        torch.testing.assert_close(loss, linear_cross_entropy(hidden, weight, targets), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(
        gradients(loss, cube, weight), gradients(plain(cube, weight, grid), cube, weight), rtol=1e-10, atol=1e-10
    )


@pytest.mark.parametrize("wanted", ["hidden", "weight"])
def test_the_gradient_of_one_input_alone_is_the_same(wanted: str) -> None:
    hidden, weight, targets = problem(9)
    expected = gradients(plain(hidden, weight, targets), hidden if wanted == "hidden" else weight)[0]
    hidden.requires_grad_(wanted == "hidden")
    weight.requires_grad_(wanted == "weight")
    with chunks_of(4):
        linear_cross_entropy(hidden, weight, targets).backward()
    seen, unseen = (hidden, weight) if wanted == "hidden" else (weight, hidden)
    torch.testing.assert_close(seen.grad, expected, rtol=1e-10, atol=1e-10)
    assert unseen.grad is None


def test_without_gradients_the_value_is_the_same_and_asks_for_none() -> None:
    hidden, weight, targets = problem(9)
    targets[2] = IGNORED
    with chunks_of(4):
        with_gradient = linear_cross_entropy(hidden, weight, targets)
        with torch.no_grad():
            without = linear_cross_entropy(hidden, weight, targets)
        detached = linear_cross_entropy(hidden.detach(), weight.detach(), targets)
    assert with_gradient.requires_grad
    assert not without.requires_grad
    assert not detached.requires_grad
    torch.testing.assert_close(without, with_gradient.detach(), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(detached, with_gradient.detach(), rtol=1e-12, atol=1e-12)


def test_gradcheck() -> None:
    hidden, weight, targets = problem(7)
    targets[3] = IGNORED
    with chunks_of(3):
        assert torch.autograd.gradcheck(lambda h, w: linear_cross_entropy(h, w, targets), (hidden, weight))


def test_a_second_derivative_through_a_model_is_right_or_refused() -> None:
    """The loss is differentiable once; a Hessian-vector product that leaves the head's curvature out must not pass."""
    # the fused kernel has no second derivative on CPU, and says so
    config = GPTConfig(n_layer=1, n_head=1, dim=4, block_size=5, vocab_size=7, attention_backend="manual")
    model = randomise(GPT(config).double())
    ids, targets = random_ids(7, 2, 5), random_ids(7, 2, 5, seed=2)
    weights = list(model.blocks.parameters())

    def hessian_times_ones(loss: Tensor) -> tuple[Tensor, ...]:
        first = torch.autograd.grad(loss, weights, create_graph=True)
        return torch.autograd.grad(sum(gradient.sum() for gradient in first), weights)

    expected = hessian_times_ones(F.cross_entropy(model(ids).flatten(0, 1), targets.flatten()))
    try:
        ours = hessian_times_ones(model.loss(ids, targets))
    except RuntimeError as refused:
        assert "differentiable" in str(refused)  # noqa: PT017
    else:
        torch.testing.assert_close(ours, expected, rtol=1e-8, atol=1e-8)


# --- ignored targets and wrong ones ----------------------------------------------------------------------------


def test_an_ignored_target_gives_its_hidden_state_no_gradient_and_does_not_count_in_the_mean() -> None:
    hidden, weight, targets = problem(6)
    targets[[1, 4]] = IGNORED
    counted = targets != IGNORED
    with chunks_of(4):
        loss = linear_cross_entropy(hidden, weight, targets)
        alone = linear_cross_entropy(hidden[counted], weight, targets[counted])
    torch.testing.assert_close(loss, alone, rtol=1e-12, atol=1e-12)
    (gradient,) = gradients(loss, hidden)
    assert (gradient[~counted] == 0).all()
    assert (gradient[counted] != 0).any(dim=-1).all()


def test_where_every_target_is_ignored_loss_and_gradients_are_zero() -> None:
    hidden, weight, targets = problem(6)
    targets.fill_(IGNORED)
    with chunks_of(4):
        loss = linear_cross_entropy(hidden, weight, targets)
    assert loss.item() == 0
    for gradient in gradients(loss, hidden, weight):
        assert (gradient == 0).all()
    with torch.no_grad():
        assert linear_cross_entropy(hidden, weight, targets).item() == 0


@pytest.mark.cpu("a device reports a wrong id late, and then aborts")
@pytest.mark.parametrize("function", [linear_cross_entropy, token_nll])
@pytest.mark.parametrize("wrong", [5, 999, -1, -5, -101])
def test_a_target_outside_the_vocabulary_is_refused_and_not_taken_for_another(
    wrong: int, function: Callable[[Tensor, Tensor, Tensor], Tensor]
) -> None:
    """torch's cross_entropy refuses them all; a slip such as padding with −1 must not train on token 0."""
    hidden, weight, targets = problem(6)
    targets[3] = wrong
    with pytest.raises((IndexError, RuntimeError, ValueError)):
        function(hidden, weight, targets)


@pytest.mark.parametrize("function", [linear_cross_entropy, token_nll])
@pytest.mark.parametrize("shape", [(2, 3), (2, 7), (1, 4), (4, 2)], ids=str)
def test_targets_of_another_shape_than_the_hidden_states_are_refused(
    shape: tuple[int, int], function: Callable[[Tensor, Tensor, Tensor], Tensor]
) -> None:
    """Also where the surplus is a whole chunk, whose gradient would be left as whatever was in memory."""
    hidden, weight, _ = problem(8)
    with chunks_of(4), pytest.raises((RuntimeError, ValueError)):
        function(hidden.view(2, 4, 3), weight, torch.zeros(shape, dtype=torch.int64))


# --- how it composes with autograd -----------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [3.0, -0.5, 0.0])
def test_the_upstream_gradient_scales_both_gradients(scale: float) -> None:
    hidden, weight, targets = problem()
    whole = gradients(linear_cross_entropy(hidden, weight, targets), hidden, weight)
    scaled = gradients(linear_cross_entropy(hidden, weight, targets) * scale, hidden, weight)
    torch.testing.assert_close(scaled, tuple(gradient * scale for gradient in whole), rtol=1e-12, atol=1e-12)


def test_gradients_of_two_calls_accumulate_to_those_of_the_sum() -> None:
    hidden, weight, targets = problem(10)
    halves = [slice(0, 4), slice(4, 10)]
    for half in halves:
        linear_cross_entropy(hidden[half], weight, targets[half]).backward()
    total = sum(plain(hidden[half], weight, targets[half]) for half in halves)
    expected = gradients(total, hidden, weight)
    torch.testing.assert_close((hidden.grad, weight.grad), expected, rtol=1e-10, atol=1e-10)


def test_backward_may_be_called_twice_on_a_retained_graph() -> None:
    hidden, weight, targets = problem()
    loss = linear_cross_entropy(hidden, weight, targets)
    first = torch.autograd.grad(loss, (hidden, weight), retain_graph=True)
    torch.testing.assert_close(gradients(loss, hidden, weight), first, rtol=0, atol=0)


def test_a_weight_that_is_also_the_embedding_gets_the_sum_of_both_gradients() -> None:
    _, weight, targets = problem(8, dim=4)
    mix = nn.Linear(4, 4).double()
    ids = random_ids(5, 8)
    with chunks_of(3):
        loss = linear_cross_entropy(mix(F.embedding(ids, weight)), weight, targets)
    expected = plain(mix(F.embedding(ids, weight)), weight, targets)
    inputs = (weight, *mix.parameters())
    torch.testing.assert_close(gradients(loss, *inputs), gradients(expected, *inputs), rtol=1e-10, atol=1e-10)


SINGLE_HEAD = SingleHeadModel(SingleHeadConfig(dim=8, block_size=9, vocab_size=12))
TIED = GPT(GPTConfig(n_layer=2, n_head=2, dim=8, block_size=9, vocab_size=12))
UNTIED = GPT(GPTConfig(n_layer=2, n_head=2, dim=8, block_size=9, vocab_size=12, tie_embeddings=False))


@pytest.mark.parametrize("model", [SINGLE_HEAD, TIED, UNTIED], ids=["single head", "tied", "untied"])
def test_a_models_loss_and_all_its_gradients_equal_cross_entropy_of_its_logits(model: LanguageModel) -> None:
    model = randomise(model.double())
    ids, targets = random_ids(12, 3, 9), random_ids(12, 3, 9, seed=2)
    targets[0, :5] = IGNORED
    parameters = dict(model.named_parameters())
    with chunks_of(4):
        loss = model.loss(ids, targets)
    expected = F.cross_entropy(model(ids).flatten(0, 1), targets.flatten())
    torch.testing.assert_close(loss, expected, rtol=1e-10, atol=1e-10)
    ours = dict(zip(parameters, gradients(loss, *parameters.values()), strict=True))
    theirs = dict(zip(parameters, gradients(expected, *parameters.values()), strict=True))
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


# --- precision -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1.0, 1e3])
def test_in_fp32_large_logits_neither_overflow_nor_lose_the_target(size: float) -> None:
    hidden, weight, targets = problem(12, 9, 4, dtype=torch.float32)
    hidden = (hidden.detach() * size).requires_grad_()
    with chunks_of(5):
        loss = linear_cross_entropy(hidden, weight, targets)
    expected = plain(hidden, weight, targets)
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(
        gradients(loss, hidden, weight), gradients(expected, hidden, weight), rtol=1e-5, atol=1e-5 * size
    )


def distance(ours: tuple[Tensor, ...], exact: tuple[Tensor, ...]) -> list[float]:
    """Relative error of each tensor, in the Euclidean norm."""
    return [((a.double() - b).norm() / b.norm()).item() for a, b in zip(ours, exact, strict=True)]


def test_under_autocast_it_is_as_close_to_the_truth_as_the_plain_autocast_computation() -> None:
    hidden, weight, targets = problem(300, 40, 16, dtype=torch.float32)
    targets[::7] = IGNORED
    with chunks_of(64), torch.autocast(torch.get_default_device().type, torch.bfloat16):
        loss = linear_cross_entropy(hidden, weight, targets)
        in_bf16 = plain(hidden, weight, targets)
    assert loss.dtype == torch.float32
    ours = (loss, *gradients(loss, hidden, weight))
    theirs = (in_bf16, *gradients(in_bf16, hidden, weight))
    assert [tensor.dtype for tensor in ours] == [torch.float32] * 3
    hidden64, weight64 = (tensor.detach().double().requires_grad_() for tensor in (hidden, weight))
    truth = plain(hidden64, weight64, targets)
    exact = (truth, *gradients(truth, hidden64, weight64))
    for our_error, their_error in zip(distance(ours, exact), distance(theirs, exact), strict=True):
        assert our_error < max(1.5 * their_error, 1e-3)
        assert our_error < 0.01
    assert distance(ours, exact)[1] > 1e-4, "exact to fp32: the products were not made in bf16"


@pytest.mark.parametrize("model", [SINGLE_HEAD, TIED, UNTIED], ids=["single head", "tied", "untied"])
def test_under_autocast_a_model_learns_what_it_learns_in_fp32(model: LanguageModel) -> None:
    model = randomise(model.float())
    ids, targets = random_ids(12, 3, 9), random_ids(12, 3, 9, seed=2)
    exact = model.loss(ids, targets)
    with chunks_of(4), torch.autocast(torch.get_default_device().type, torch.bfloat16):
        loss = model.loss(ids, targets)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(exact.item(), rel=0.02)
    parameters = dict(model.named_parameters())
    pairs = zip(gradients(loss, *parameters.values()), gradients(exact, *parameters.values()), strict=True)
    for name, (ours, fp32) in zip(parameters, pairs, strict=True):
        assert ours.dtype == torch.float32
        assert F.cosine_similarity(ours.flatten(), fp32.flatten(), dim=0) > 0.99, name


def test_token_nll_under_autocast_is_close_to_the_plain_autocast_computation() -> None:
    hidden, weight, targets = problem(50, 40, 16, dtype=torch.float32)
    with chunks_of(16), torch.autocast(torch.get_default_device().type, torch.bfloat16):
        ours = token_nll(hidden, weight, targets)
        expected = F.cross_entropy(F.linear(hidden, weight).float(), targets, reduction="none")
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours, expected.detach(), rtol=1e-3, atol=1e-3)


def test_in_bf16_sums_over_the_chunks_are_fp32_and_gradients_have_the_dtype_of_their_inputs() -> None:
    hidden, weight, targets = problem(2000, 40, 16, dtype=torch.bfloat16)
    with chunks_of(4):
        loss = linear_cross_entropy(hidden, weight, targets)
    assert loss.dtype == torch.float32
    ours = (loss, *gradients(loss, hidden, weight))
    hidden64, weight64 = (tensor.detach().double().requires_grad_() for tensor in (hidden, weight))
    truth = plain(hidden64, weight64, targets)
    assert [tensor.dtype for tensor in ours[1:]] == [torch.bfloat16] * 2
    assert max(distance(ours, (truth, *gradients(truth, hidden64, weight64)))) < 0.01


# --- memory ----------------------------------------------------------------------------------------------------


def test_no_tensor_of_all_the_logits_is_ever_made() -> None:
    hidden, weight, targets = problem(96, 101, 4)
    with TensorSizes() as plain_sizes:
        plain(hidden, weight, targets).backward()
    assert plain_sizes.largest == 96 * 101, "the measure does not see what it should"
    with chunks_of(8), TensorSizes() as sizes:
        linear_cross_entropy(hidden, weight, targets).backward()
    assert sizes.largest == 8 * 101
    with chunks_of(8), TensorSizes() as sizes:
        token_nll(hidden, weight, targets)
    assert sizes.largest == 8 * 101


def test_at_the_real_vocabulary_a_models_step_and_evaluation_stay_below_half_of_the_logits() -> None:
    torch.manual_seed(0)
    model = SingleHeadModel(SingleHeadConfig(dim=8))
    ids, targets = random_ids(50257, 128, 8), random_ids(50257, 128, 8, seed=2)
    with TensorSizes() as sizes:
        model.loss(ids, targets).backward()
        model.token_nll(ids, targets)
    assert sizes.largest < 128 * 8 * 50257 / 2


@pytest.mark.parametrize("vocab_size", [10, 50257, 10**9])
def test_a_chunk_is_never_empty_and_bounded_by_its_number_of_logits(vocab_size: int) -> None:
    for tokens in (1, 63, 64, 2048, 10**6):
        chunk = head_module.chunk_size(tokens, vocab_size, torch.float32, torch.device("cpu"))
        assert 1 <= chunk <= tokens
        assert chunk * vocab_size <= max(2**24, 64 * vocab_size)


# --- token_nll -------------------------------------------------------------------------------------------------


@property_test
@given(
    shape=st.tuples(st.integers(1, 4), st.integers(1, 6)),
    vocab_size=st.integers(1, 12),
    chunk=st.integers(1, 25),
    ignored=st.lists(st.booleans(), min_size=24, max_size=24),
    seed=st.integers(0, 10**6),
)
def test_token_nll_equals_unreduced_cross_entropy_and_is_zero_where_ignored(
    shape: tuple[int, int], vocab_size: int, chunk: int, ignored: list[bool], seed: int
) -> None:
    tokens = math.prod(shape)
    hidden, weight, targets = problem(tokens, vocab_size, seed=seed)
    targets[torch.tensor(ignored[:tokens])] = IGNORED
    with chunks_of(chunk):
        nll = token_nll(hidden.view(*shape, -1), weight, targets.view(shape))
    assert nll.shape == shape
    assert not nll.requires_grad
    logits = F.linear(hidden, weight).detach()
    expected = F.cross_entropy(logits, targets, reduction="none").view(shape)
    torch.testing.assert_close(nll, expected, rtol=1e-10, atol=1e-10)
    np.testing.assert_allclose(
        nll.flatten(), formulas.token_nll(logits.numpy(force=True), targets.numpy(force=True)), atol=1e-10
    )
    assert (nll[targets.view(shape) == IGNORED] == 0).all()
