"""Speculative decoding draws exactly what the large model alone would draw."""

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_gpt.errors import CallError
from lightning_gpt.models import GPT, GPTConfig
from lightning_gpt.models.decoding.sampling import Sampling
from lightning_gpt.models.decoding.speculative import SpeculationCount, sample_speculatively
from lightning_gpt.models.evaluating import evaluating
from tests.models.helpers import random_ids, randomise

VOCAB = 4
LARGE = randomise(GPT(GPTConfig(n_layer=1, n_head=2, dim=8, block_size=32, vocab_size=VOCAB)), seed=1).eval()
SMALL = randomise(GPT(GPTConfig(n_layer=1, n_head=1, dim=8, block_size=32, vocab_size=VOCAB)), seed=2).eval()


def draw(model: GPT, draft: GPT, ids: Tensor, n: int, sampling: Sampling, seed: int = 0, **options: Any) -> list[int]:
    generator = torch.Generator(torch.get_default_device()).manual_seed(seed)
    with evaluating(model), evaluating(draft):
        return [int(token) for token in sample_speculatively(model, draft, ids, n, sampling, generator, **options)]


@pytest.mark.parametrize("n_guess", [1, 2, 5])
@pytest.mark.parametrize("time", [1, 7, 29, 40])
@pytest.mark.parametrize("position", ["learned", "rotary"])
def test_greedy_text_is_that_of_the_large_model_alone(n_guess: int, time: int, position: str) -> None:
    sizes = {"n_head": 2, "dim": 16, "block_size": 32, "vocab_size": 29, "position": position}
    large = randomise(GPT(GPTConfig(n_layer=2, **sizes)), seed=3).eval()
    small = randomise(GPT(GPTConfig(n_layer=1, **sizes)), seed=4).eval()
    ids = random_ids(29, 1, time)
    expected = large.generate(ids, 20, temperature=0)[0, time:].tolist()
    assert draw(large, small, ids, 20, Sampling(temperature=0), n_guess=n_guess) == expected


def exact_distribution(ids: Tensor, length: int, sampling: Sampling) -> Tensor:
    """The probability of every text of ``length`` tokens after ``ids``, under the large model alone."""
    odds = []
    for text in itertools.product(range(VOCAB), repeat=length):
        probability, read = 1.0, ids
        for token in text:
            with torch.no_grad():
                probability *= float(sampling.probabilities(LARGE.next_logits(read))[0, token])
            read = torch.cat([read, torch.tensor([[token]])], dim=1)
        odds.append(probability)
    return torch.tensor(odds, dtype=torch.float64)


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(temperature=0.7, top_k=3)], ids=["plain", "top-k"])
def test_texts_are_drawn_with_the_large_models_probabilities(sampling: Sampling) -> None:
    """Pearson's χ² of 1,200 texts is within 4 standard deviations of its mean; under other odds it is far above."""
    ids, n = random_ids(VOCAB, 1, 3), 1200
    expected = exact_distribution(ids, 3, sampling) * n
    counts, count = torch.zeros(VOCAB**3, dtype=torch.float64), SpeculationCount()
    generator = torch.Generator(torch.get_default_device()).manual_seed(0)
    with evaluating(LARGE), evaluating(SMALL):
        for _ in range(n):
            # a fourth token lets a whole guess of two be read; only the first three count
            drawn = sample_speculatively(LARGE, SMALL, ids, 8, sampling, generator, n_guess=2, count=count)
            a, b, c = (int(token) for token in itertools.islice(drawn, 3))
            counts[(a * VOCAB + b) * VOCAB + c] += 1
    possible = expected > 0
    assert counts[~possible].sum() == 0
    chi2 = ((counts - expected)[possible] ** 2 / expected[possible]).sum()
    freedom = int(possible.sum()) - 1
    assert chi2 < freedom + 4 * (2 * freedom) ** 0.5 + 8
    uniform = torch.full_like(expected, n / len(expected))
    assert ((counts - uniform) ** 2 / uniform).sum() > 10 * freedom, "the test could not tell another distribution"
    assert 0 < count.accepted < count.guessed


def test_a_draft_that_is_the_model_itself_is_always_right() -> None:
    count = SpeculationCount()
    text = draw(LARGE, LARGE, random_ids(VOCAB, 1, 2), 20, Sampling(), n_guess=4, count=count)
    assert len(text) == 20
    assert count.accepted == count.guessed
    assert count.passes < 20


def test_what_does_not_fit_together_is_refused() -> None:
    other = GPT(GPTConfig(n_layer=1, n_head=1, dim=8, block_size=32, vocab_size=5))
    linear = GPT(GPTConfig(n_layer=1, n_head=1, dim=8, block_size=32, vocab_size=VOCAB, attention="linear"))
    ids = random_ids(VOCAB, 1, 2)
    with pytest.raises(CallError, match="the draft's vocabulary has 5 tokens and the model's 4"):
        draw(LARGE, other, ids, 3, Sampling())
    with pytest.raises(CallError, match="n_guess is 0; it must be a whole number from 1 to 15"):
        draw(LARGE, SMALL, ids, 3, Sampling(), n_guess=0)
    with pytest.raises(CallError, match="one prompt at a time, not 2"):
        draw(LARGE, SMALL, random_ids(VOCAB, 2, 2), 3, Sampling())
    with pytest.raises(CallError, match="impossible with linear attention"):
        draw(LARGE, linear, ids, 3, Sampling())
