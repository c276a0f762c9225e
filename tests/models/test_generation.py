"""How the next token is chosen, and the loop that chooses many."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor

from lightning_gpt.errors import CallError
from lightning_gpt.models import GPT, GPTConfig, LanguageModel, SingleHeadConfig, SingleHeadModel
from lightning_gpt.models.decoding.sampling import Decoder, Sampling, sample
from lightning_gpt.models.kv_cache import Cache
from tests.models.helpers import property_test, random_ids, randomise
from tests.reference import formulas

VOCAB, BLOCK = 13, 6
MODELS: dict[str, LanguageModel] = {
    "gpt": randomise(GPT(GPTConfig(n_layer=2, n_head=2, dim=8, block_size=BLOCK, vocab_size=VOCAB)), seed=3),
    "single head": randomise(SingleHeadModel(SingleHeadConfig(dim=8, block_size=BLOCK, vocab_size=VOCAB)), std=0.5),
}
logits_strategy = st.lists(st.floats(-8, 8, width=32), min_size=1, max_size=12)
DRAWS = 20_000


@pytest.fixture(params=sorted(MODELS))
def model(request: pytest.FixtureRequest) -> LanguageModel:
    return MODELS[request.param]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator(torch.get_default_device()).manual_seed(seed)


def probabilities(logits: list[float], **sampling: float | int | None) -> Tensor:
    """The distribution that one row of logits is drawn from."""
    return Sampling(**sampling).probabilities(torch.tensor([logits]))[0]  # type: ignore[arg-type]


def continue_by_hand(model: LanguageModel, ids: Tensor, steps: int) -> Tensor:
    """The most likely token again and again, each time from a full pass over the last ``BLOCK`` ids."""
    for _ in range(steps):
        with torch.no_grad():
            token = model(ids[:, -BLOCK:])[:, -1].argmax(dim=-1)
        ids = torch.cat([ids, token[:, None]], dim=1)
    return ids


# --- greedy ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("time", [1, 3, 6, 9])
def test_greedy_takes_the_argmax_each_time_and_slides_past_block_size(model: LanguageModel, time: int) -> None:
    prompt = random_ids(VOCAB, 3, time)
    continued = model.generate(prompt, 10, temperature=0)
    assert continued.tolist() == continue_by_hand(model, prompt, 10).tolist()


def test_past_block_size_only_the_last_block_size_ids_count(model: LanguageModel) -> None:
    ids = random_ids(VOCAB, 4, BLOCK)
    longer = torch.cat([random_ids(VOCAB, 4, 5, seed=9), ids], dim=1)
    torch.testing.assert_close(model.next_logits(longer), model(ids)[:, -1])
    assert torch.equal(
        model.generate(longer, 8, generator=seeded())[:, -8:], model.generate(ids, 8, generator=seeded())[:, -8:]
    )


def test_top_k_1_and_a_tiny_top_p_equal_greedy(model: LanguageModel) -> None:
    prompt = random_ids(VOCAB, 3, 4)
    greedy = model.generate(prompt, 8, temperature=0)
    for sampling in ({"top_k": 1}, {"top_p": 1e-6}, {"top_p": 1e-60}):
        assert torch.equal(model.generate(prompt, 8, generator=seeded(), **sampling), greedy), sampling
    drawn = model.generate(prompt, 8, generator=seeded())
    assert not torch.equal(drawn, greedy), "drawing gives the greedy text anyway: the equalities prove nothing"


@property_test
@given(logits=logits_strategy)
def test_greedy_puts_all_probability_on_one_of_the_most_likely(logits: list[float]) -> None:
    row = probabilities(logits, temperature=0)
    assert row.sum() == 1
    assert row.max() == 1
    assert logits[int(row.argmax())] == max(logits)
    assert Sampling(temperature=0).draw(torch.tensor([logits])).tolist() == [int(row.argmax())]


# --- the distribution ------------------------------------------------------------------------------------------


@property_test
@given(
    logits=logits_strategy,
    temperature=st.floats(0.05, 20),
    top_k=st.none() | st.integers(1, 15),
    top_p=st.none() | st.floats(0.001, 1),
)
def test_probabilities_sum_to_one_and_none_is_negative(
    logits: list[float], temperature: float, top_k: int | None, top_p: float | None
) -> None:
    row = probabilities(logits, temperature=temperature, top_k=top_k, top_p=top_p)
    assert row.shape == (len(logits),)
    assert row.sum().item() == pytest.approx(1, abs=1e-5)
    assert (row >= 0).all()


@property_test
@given(logits=logits_strategy, temperature=st.floats(0.1, 20))
def test_temperature_divides_the_logits(logits: list[float], temperature: float) -> None:
    expected = formulas.softmax(np.array(logits) / temperature)
    np.testing.assert_allclose(probabilities(logits, temperature=temperature).numpy(force=True), expected, atol=1e-5)


def test_a_low_temperature_sharpens_and_a_high_one_flattens() -> None:
    cold, plain, hot = (probabilities([2.0, 1.0, 0.0], temperature=t) for t in (0.1, 1.0, 100.0))
    assert cold[0] > 0.99 > plain[0] > hot[0]
    torch.testing.assert_close(hot, torch.full((3,), 1 / 3), rtol=0, atol=0.01)


@pytest.mark.parametrize("temperature", [1e-3, 1e-20, 1e-37, 1e-39, 1e-60])
def test_ever_lower_temperatures_tend_to_greedy(temperature: float) -> None:
    """Every positive temperature is allowed, so every one must give a distribution."""
    assert probabilities([30.0, -5.0, 20.0], temperature=temperature).tolist() == [1, 0, 0]


@property_test
@given(logits=st.lists(st.integers(-3, 3).map(float), min_size=1, max_size=12), k=st.integers(1, 15))
def test_top_k_draws_only_from_the_k_most_likely_also_with_ties(logits: list[float], k: int) -> None:
    """Which of several equal tokens are kept is free; how many, and with what probabilities, is not."""
    row = probabilities(logits, top_k=k)
    kept = row > 0
    assert kept.sum() == min(k, len(logits))
    values = torch.tensor(logits)
    if not kept.all():
        assert values[kept].min() >= values[~kept].max()
    expected = formulas.top_k(np.array(logits), k)
    np.testing.assert_allclose(np.sort(row.numpy(force=True)), np.sort(expected), atol=1e-6)


@property_test
@given(logits=logits_strategy, p=st.floats(0.001, 0.999))
def test_top_p_keeps_the_smallest_set_of_most_likely_tokens_that_reaches_p(logits: list[float], p: float) -> None:
    whole = formulas.softmax(np.array(logits))
    sums = np.cumsum(np.sort(whole)[::-1])
    assume(np.abs(sums - p).min() > 1e-5)  # nearer to the border fp32 may fall on either side
    row = probabilities(logits, top_p=p).numpy(force=True)
    expected = formulas.top_p(whole, p)
    assert (row > 0).sum() == (expected > 0).sum()
    np.testing.assert_allclose(np.sort(row), np.sort(expected), rtol=1e-4, atol=1e-6)
    kept = row > 0
    assert whole[kept].min() >= whole[~kept].max(initial=0) - 1e-7
    assert whole[kept].sum() >= p


@pytest.mark.parametrize(("p", "kept"), [(0.25, 1), (0.26, 2), (0.5, 2), (0.75, 3), (0.76, 4), (1.0, 4)])
def test_top_p_stops_where_p_is_reached_exactly(p: float, kept: int) -> None:
    """Four equal tokens have exactly ¼ each."""
    row = probabilities([0.0, 0.0, 0.0, 0.0], top_p=p)
    assert sorted(row.tolist()) == pytest.approx([0.0] * (4 - kept) + [1 / kept] * kept)


@property_test
@given(logits=logits_strategy, p=st.sampled_from([1e-60, 1e-30, 1e-3, 0.5, 1.0]))
def test_top_p_always_keeps_the_most_likely(logits: list[float], p: float) -> None:
    row = probabilities(logits, top_p=p)
    assert logits[int(row.argmax())] == pytest.approx(max(logits), abs=1e-5)
    assert row.sum().item() == pytest.approx(1, abs=1e-5)


def test_top_p_is_applied_to_what_temperature_and_top_k_leave() -> None:
    logits = [math.log(value) for value in (0.4, 0.3, 0.2, 0.1)]
    # the two most likely are 4/7 and 3/7 once they are alone: 0.57 reaches 0.55, and 0.4 alone would not
    torch.testing.assert_close(probabilities(logits, top_k=2, top_p=0.55), torch.tensor([1.0, 0, 0, 0]))
    torch.testing.assert_close(probabilities(logits, top_p=0.55), torch.tensor([4 / 7, 3 / 7, 0, 0]))
    # at temperature ½ they are 16 : 9 : 4 : 1, and 16/30 alone does not reach 0.55 while 25/30 does
    torch.testing.assert_close(
        probabilities(logits, temperature=0.5, top_p=0.55), torch.tensor([16 / 25, 9 / 25, 0, 0])
    )
    torch.testing.assert_close(probabilities(logits, temperature=0.5, top_p=0.53), torch.tensor([1.0, 0, 0, 0]))


def test_each_row_of_a_batch_has_its_own_distribution() -> None:
    logits = torch.randn(5, 9, generator=seeded())
    sampling = Sampling(temperature=0.7, top_k=5, top_p=0.8)
    alone = torch.cat([sampling.probabilities(row[None]) for row in logits])
    torch.testing.assert_close(sampling.probabilities(logits), alone)


def test_the_logits_given_are_left_as_they_were() -> None:
    logits = torch.randn(2, 9, generator=seeded())
    before = logits.clone()
    for sampling in (Sampling(temperature=0), Sampling(temperature=0.5, top_k=3, top_p=0.5)):
        sampling.draw(logits, seeded())
    assert torch.equal(logits, before)


# --- randomness ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "sampling", [Sampling(), Sampling(temperature=2.0), Sampling(top_k=3), Sampling(top_p=0.8), Sampling(temperature=0)]
)
def test_drawn_frequencies_match_the_probabilities(sampling: Sampling) -> None:
    """Pearson's χ² over the tokens that can be drawn; with a right sampler it is about their number."""
    logits = torch.tensor([1.0, 0.3, -0.5, 2.0, 0.0, 0.3])
    expected = sampling.probabilities(logits[None])[0] * DRAWS
    drawn = sampling.draw(logits.expand(DRAWS, -1), seeded())
    counts = torch.bincount(drawn, minlength=6).float()
    possible = expected > 0
    assert counts[~possible].sum() == 0
    chi_square = ((counts - expected)[possible] ** 2 / expected[possible]).sum()
    freedom = int(possible.sum()) - 1
    assert chi_square <= freedom + 6 * math.sqrt(2 * freedom)


def test_the_frequency_test_would_catch_another_temperature() -> None:
    logits = torch.tensor([1.0, 0.3, -0.5, 2.0, 0.0, 0.3])
    expected = logits.softmax(dim=0) * DRAWS
    counts = torch.bincount(Sampling(temperature=1.1).draw(logits.expand(DRAWS, -1), seeded()), minlength=6)
    assert ((counts - expected) ** 2 / expected).sum() > 5 + 6 * math.sqrt(2 * 5)


def test_the_same_seed_gives_the_same_tokens_and_another_seed_others(model: LanguageModel) -> None:
    prompt = random_ids(VOCAB, 2, 3)
    first, again, other = (model.generate(prompt, 30, generator=seeded(seed)) for seed in (7, 7, 8))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_without_a_generator_the_global_seed_decides(model: LanguageModel) -> None:
    prompt = random_ids(VOCAB, 2, 3)
    results = []
    for seed in (5, 5, 6):
        torch.manual_seed(seed)
        results.append(model.generate(prompt, 30))
    assert torch.equal(results[0], results[1])
    assert not torch.equal(results[0], results[2])


# --- the loop --------------------------------------------------------------------------------------------------


def test_a_batch_of_prompts_is_continued_row_by_row_and_keeps_its_prompts(model: LanguageModel) -> None:
    prompts = random_ids(VOCAB, 4, 5)
    continued = model.generate(prompts, 7, temperature=0)
    assert continued.shape == (4, 12)
    assert torch.equal(continued[:, :5], prompts)
    alone = torch.cat([model.generate(prompt[None], 7, temperature=0) for prompt in prompts])
    assert torch.equal(continued, alone)


def test_drawn_tokens_are_of_the_vocabulary_and_have_the_dtype_of_the_prompt(model: LanguageModel) -> None:
    continued = model.generate(random_ids(VOCAB, 2, 3), 40, temperature=5.0, generator=seeded())
    assert continued.dtype == torch.int64
    assert 0 <= continued.min() <= continued.max() < VOCAB
    assert len(continued[:, 3:].unique()) > VOCAB / 2


def test_no_new_tokens_give_the_prompt(model: LanguageModel) -> None:
    prompt = random_ids(VOCAB, 2, 3)
    assert torch.equal(model.generate(prompt, 0), prompt)


@pytest.mark.parametrize("training", [True, False])
def test_generation_leaves_the_mode_and_the_prompt_as_they_were_and_makes_no_gradients(
    model: LanguageModel, training: bool
) -> None:
    prompt = random_ids(VOCAB, 2, 3)
    before = prompt.clone()
    model.train(training)
    assert not model.generate(prompt, 4).requires_grad
    assert model.training is training
    assert torch.equal(prompt, before)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_sample_yields_each_token_before_it_computes_the_next() -> None:
    seen: list[list[int]] = []

    class CountsUp:
        context_limit = None

        def new_cache(self, capacity: int) -> Cache:
            return Cache([])

        def next_logits(self, ids: Tensor, lengths: Tensor | None = None, cache: Cache | None = None) -> Tensor:
            seen.append(ids[0].tolist())
            return torch.nn.functional.one_hot((ids[:, -1] + 1) % VOCAB, VOCAB).float()

    tokens = sample(Decoder(CountsUp(), torch.tensor([[4]]), None, 5), 5, Sampling(temperature=0))
    assert next(tokens).tolist() == [5]
    assert seen == [[4]]
    assert next(tokens).tolist() == [6]
    assert seen == [[4], [5]]
    assert [token.item() for token in tokens] == [7, 8, 9]


# --- wrong calls -----------------------------------------------------------------------------------------------

BAD_SAMPLING = [
    ("temperature", -0.1),
    ("temperature", math.nan),
    ("temperature", math.inf),
    ("top_k", 0),
    ("top_k", -3),
    ("top_p", 0.0),
    ("top_p", -0.5),
    ("top_p", 1.01),
    ("top_p", math.nan),
]


@pytest.mark.parametrize(("name", "value"), BAD_SAMPLING)
def test_a_bad_sampling_value_is_refused_by_name_with_what_is_allowed(name: str, value: float) -> None:
    for call in (
        lambda **bad: Sampling(**bad),
        lambda **bad: MODELS["gpt"].generate(random_ids(VOCAB, 1, 2), 3, **bad),
    ):
        with pytest.raises(CallError, match=rf"{name} is {value}; it must be "):
            call(**{name: value})


@pytest.mark.parametrize("shape", [(3,), (1, 0), (2, 3, 1), ()])
def test_prompts_that_are_no_batch_of_at_least_one_token_are_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(CallError, match=r"prompt ids have shape .* at least one token"):
        MODELS["gpt"].generate(torch.zeros(shape, dtype=torch.int64), 3)


def test_a_negative_number_of_new_tokens_is_refused() -> None:
    with pytest.raises(CallError, match="max_new_tokens is -1; it must be a whole number from 0 to 1,048,576"):
        MODELS["gpt"].generate(random_ids(VOCAB, 1, 2), -1)


CALLS: list[Callable[[LanguageModel, Tensor], Tensor]] = [
    lambda model, ids: model.generate(ids, 2),
    lambda model, ids: model.next_logits(ids),
]


@pytest.mark.cpu("a device reports a wrong id late, and then aborts")
@pytest.mark.parametrize("call", CALLS)
def test_a_prompt_outside_the_vocabulary_is_refused(call: Callable[[LanguageModel, Tensor], Tensor]) -> None:
    with pytest.raises(CallError, match=rf"token id {VOCAB} is outside the vocabulary of {VOCAB}"):
        call(MODELS["gpt"], torch.tensor([[1, VOCAB]]))
