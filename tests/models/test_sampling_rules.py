"""Each rule of sampling beside transformers' processors or its definition, and many texts drawn at once."""

import math

import pytest
import torch
from torch import Tensor
from transformers.generation import logits_process as theirs

from lightning_gpt.errors import CallError
from lightning_gpt.models import GPT, GPTConfig
from lightning_gpt.models.decoding.rules.rule import SamplingRule, TokenCounts, rules
from lightning_gpt.models.decoding.samplers import Sampler, draw_each, log_probabilities
from lightning_gpt.models.decoding.sampling import Sampling
from lightning_gpt.models.decoding.speculative import sample_speculatively
from tests.models.helpers import random_ids, randomise

VOCAB = 31
LOGITS = 4 * torch.randn(6, VOCAB, generator=torch.Generator(torch.get_default_device()).manual_seed(1))
PROMPT, DRAWN = random_ids(VOCAB, 6, 5, seed=2), random_ids(VOCAB, 6, 9, seed=3)

LIKE_THEIRS = [
    ({"repetition_penalty": 1.7}, lambda: [theirs.RepetitionPenaltyLogitsProcessor(1.7)]),
    ({"repetition_penalty": 0.6}, lambda: [theirs.RepetitionPenaltyLogitsProcessor(0.6)]),
    ({"temperature": 0.6}, lambda: [theirs.TemperatureLogitsWarper(0.6)]),
    ({"top_k": 7}, lambda: [theirs.TopKLogitsWarper(7)]),
    ({"top_p": 0.7}, lambda: [theirs.TopPLogitsWarper(0.7)]),
    ({"min_p": 0.08}, lambda: [theirs.MinPLogitsWarper(0.08)]),
    (
        {"repetition_penalty": 1.3, "temperature": 1.8, "top_k": 12, "top_p": 0.9, "min_p": 0.03},
        lambda: [
            theirs.RepetitionPenaltyLogitsProcessor(1.3),
            theirs.TemperatureLogitsWarper(1.8),
            theirs.TopKLogitsWarper(12),
            theirs.TopPLogitsWarper(0.9),
            theirs.MinPLogitsWarper(0.03),
        ],
    ),
]


def counts() -> TokenCounts:
    """The prompts and what was drawn after them, counted token by token."""
    counted = TokenCounts.of_prompts(PROMPT, None, VOCAB)
    for tokens in DRAWN.T:
        counted.add(tokens)
    return counted


@pytest.mark.parametrize(("options", "processors"), LIKE_THEIRS, ids=[str(options) for options, _ in LIKE_THEIRS])
def test_rules_and_their_order_are_those_of_transformers(options: dict, processors) -> None:
    expected = LOGITS
    for processor in processors():
        expected = processor(torch.cat([PROMPT, DRAWN], dim=1), expected)
    found = Sampling(**options).probabilities(LOGITS, counts())
    torch.testing.assert_close(found, expected.softmax(dim=-1), rtol=1e-5, atol=1e-7)
    assert not torch.allclose(found, LOGITS.softmax(dim=-1), atol=1e-3), "the rule changes nothing here"


def test_presence_and_frequency_penalties_are_openai_s_formula() -> None:
    """``μ_j − c_j α_frequency − 1[c_j > 0] α_presence``, with c counted over what was drawn."""
    expected = LOGITS.clone()
    for row, drawn in enumerate(DRAWN.tolist()):
        for token in range(VOCAB):
            expected[row, token] -= drawn.count(token) * 0.4 + (token in drawn) * 0.9
    found = Sampling(presence_penalty=0.9, frequency_penalty=0.4).changed(LOGITS, counts())
    torch.testing.assert_close(found - found.amax(-1, True), expected - expected.amax(-1, True))
    assert any(drawn.count(token) > 1 for drawn in DRAWN.tolist() for token in drawn)


def test_counts_of_padded_prompts_leave_the_padding_out() -> None:
    counted = TokenCounts.of_prompts(torch.tensor([[4, 5, 9], [4, 9, 9]]), torch.tensor([3, 1]), VOCAB)
    assert [row.nonzero().flatten().tolist() for row in counted.prompt] == [[4, 5, 9], [4]]


def test_a_rule_of_ones_own_is_applied_before_the_temperature_and_refused_when_wrong() -> None:
    @rules.register("test_only_even")
    class OnlyEven(SamplingRule):
        def __init__(self, last: int) -> None:
            self.last = last

        def apply(self, logits: Tensor, counts: TokenCounts | None) -> Tensor:
            place = torch.arange(logits.shape[-1])
            return logits.masked_fill((place % 2 == 1) & (place <= self.last), -torch.inf)

    sampling = Sampling(rules=({"kind": "test_only_even", "last": VOCAB},), temperature=0)
    assert all(token % 2 == 0 for token in sampling.draw(LOGITS).tolist())
    assert sampling == Sampling(rules=({"kind": "test_only_even", "last": VOCAB},), temperature=0)
    assert any(token % 2 for token in Sampling(temperature=0).draw(LOGITS).tolist())
    for wrong, said in (({"kind": "no_such"}, "no_such"), ({"kind": "test_only_even"}, "last"), (5, "rules")):
        with pytest.raises(CallError, match=said):
            Sampling(rules=(wrong,))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "value"), [("min_p", 1.5), ("repetition_penalty", 0.0), ("presence_penalty", math.nan), ("min_p", -0.1)]
)
def test_values_out_of_range_are_refused_by_name(name: str, value: float) -> None:
    with pytest.raises(CallError, match=f"{name} is {value}; it must be "):
        Sampling(**{name: value})


# --- many texts at once ----------------------------------------------------------------------------------------

EACH = [
    Sampling(),
    Sampling(temperature=0),
    Sampling(temperature=0.7, top_k=9, repetition_penalty=1.5),
    Sampling(top_p=0.6),
    Sampling(temperature=0, presence_penalty=2.0),
    Sampling(temperature=0.7, top_k=9, repetition_penalty=1.5),
]


def sampler(row: int) -> Sampler:
    return Sampler(EACH[row], PROMPT[row], VOCAB, seed=40 + row)


def test_a_text_is_drawn_the_same_beside_whatever_others() -> None:
    """Logits that change from step to step; each text alone, all together, and all in another order."""
    steps = 3 * torch.randn(12, 6, VOCAB, generator=torch.Generator(torch.get_default_device()).manual_seed(5))

    def together(order: list[int]) -> list[list[int]]:
        samplers = [sampler(row) for row in order]
        drawn = torch.stack([draw_each(logits[order], samplers) for logits in steps], dim=1)
        return [drawn[order.index(row)].tolist() for row in sorted(order)]

    whole = together([0, 1, 2, 3, 4, 5])
    assert together([5, 3, 1, 0, 2, 4]) == whole
    assert [together([row])[0] for row in range(6)] == whole
    assert whole[2] != whole[5], "equal rules, but other prompts and seeds"


def test_what_is_drawn_is_distributed_as_the_rules_say() -> None:
    """Pearson's χ² of inversion draws with a text's own rules; impossible tokens never come."""
    sampling, draws = Sampling(temperature=1.3, top_k=8), 4000
    one = Sampler(sampling, PROMPT[0], VOCAB, seed=1)
    drawn = torch.cat([draw_each(LOGITS[:1], [one]) for _ in range(draws)])
    expected = sampling.probabilities(LOGITS[:1])[0] * draws
    found = torch.bincount(drawn, minlength=VOCAB).float()
    assert found[expected == 0].sum() == 0
    possible = expected > 0
    assert ((found - expected)[possible] ** 2 / expected[possible]).sum() < 7 + 6 * math.sqrt(14)
    assert len(drawn.unique()) > 3


@pytest.mark.parametrize("chance", [0.0, 1 - 2**-53])
def test_the_ends_of_the_random_numbers_draw_possible_tokens(chance: float) -> None:
    logits = torch.full((1, 9), -torch.inf)
    logits[0, [2, 6]] = torch.tensor([0.3, 0.1])
    one = Sampler(Sampling(), PROMPT[0] % 9, 9)
    one.chance = lambda: chance  # type: ignore[method-assign]
    assert draw_each(logits, [one]).item() == (2 if chance == 0 else 6)


def test_log_probabilities_are_the_models_own() -> None:
    tokens = torch.tensor([3, 1, 4, 1, 5, 9])
    own, indices, values = log_probabilities(LOGITS, tokens, 4)
    expected = LOGITS.double().log_softmax(dim=-1)
    torch.testing.assert_close(own.double(), expected[torch.arange(6), tokens], rtol=0, atol=1e-6)
    torch.testing.assert_close(values.double(), expected.gather(1, indices), rtol=0, atol=1e-6)
    assert torch.equal(indices, expected.argsort(dim=1, descending=True)[:, :4])


def test_penalties_reach_generate_and_are_refused_with_a_draft() -> None:
    model = randomise(GPT(GPTConfig(n_layer=1, n_head=2, dim=8, block_size=16, vocab_size=VOCAB)), seed=3)
    ids, lengths = random_ids(VOCAB, 2, 3), torch.tensor([3, 2])
    new = model.generate(ids, 10, temperature=0, presence_penalty=100.0, lengths=lengths)
    for row, length in enumerate(lengths.tolist()):
        text = new[row, length : length + 10].tolist()
        assert len(set(text)) == 10, "each token once"
    again = model.generate(ids, 10, temperature=0, lengths=lengths)
    assert len(set(again[0, 3:].tolist())) < 10, "it repeats itself without the penalty"
    with pytest.raises(CallError, match="use no draft"):
        next(sample_speculatively(model, model, ids[:1], 3, Sampling(repetition_penalty=1.1)))
