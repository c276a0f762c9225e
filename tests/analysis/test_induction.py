"""Scores of heads on repeated tokens: their definition, and a model that copies by hand-written weights."""

import numpy as np
import pytest
import torch

from lightning_gpt.analysis.induction import HeadScores, head_scores, longest_period, lookback_score, repeated_tokens
from lightning_gpt.analysis.layer_diagnostics import measure
from lightning_gpt.analysis.patterns import attention_patterns
from lightning_gpt.analysis.probe import Probe
from lightning_gpt.analysis.sinks import key_importance, sink_rate, sink_scores
from lightning_gpt.errors import CallError
from lightning_gpt.models import GPT, GPTConfig, SingleHeadConfig, SingleHeadModel
from tests.analysis.copying_model import VOCAB, copying_model
from tests.models.helpers import random_ids, randomise
from tests.models.variants import SEGMENTS, build

PERIOD = 5


def gpt(**options: object) -> GPT:
    config = GPTConfig(n_layer=2, n_head=2, dim=8, block_size=13, vocab_size=11, **options)  # type: ignore[arg-type]
    return randomise(GPT(config).double()).eval()


@pytest.mark.parametrize("attention", ["full", "sink"])
@pytest.mark.parametrize("first", [None, 7])
def test_the_scores_are_means_over_entries_of_the_pattern(attention: str, first: int | None) -> None:
    model, extra = gpt(attention=attention), 0 if first is None else 1
    scores = head_scores(model, rows=3, period=PERIOD, seed=4, first=first)
    ids = repeated_tokens(11, 3, PERIOD, 4, first)
    patterns, time = attention_patterns(model, ids), 2 * PERIOD + extra
    second = range(PERIOD + extra, time)
    for layer, pattern in enumerate(patterns):
        assert pattern is not None
        a = pattern[..., -time:].numpy()
        for head in range(2):
            for name, back, rows in (
                ("induction", PERIOD - 1, second),
                ("duplicate_token", PERIOD, second),
                ("previous_token", 1, range(1, time)),
            ):
                by_hand = np.mean([a[b, head, i, i - back] for b in range(3) for i in rows])
                assert float(getattr(scores, name)[layer][head]) == pytest.approx(by_hand, rel=1e-12), name
    with torch.no_grad():
        log_p = model(ids).log_softmax(dim=-1)
    nll = [[-float(log_p[b, i - 1, ids[b, i]]) for i in range(1, time)] for b in range(3)]
    start = PERIOD + extra
    assert scores.first_loss == pytest.approx(np.mean([row[: start - 1] for row in nll]), rel=1e-10)
    assert scores.repeat_loss == pytest.approx(np.mean([row[start:] for row in nll]), rel=1e-10)


def test_repeated_tokens_are_the_same_each_time_and_leave_the_random_state_alone() -> None:
    before = torch.get_rng_state()
    ids = repeated_tokens(50, 3, 4, seed=1, first=9)
    assert ids.shape == (3, 9)
    assert (ids[:, 0] == 9).all()
    assert torch.equal(ids[:, 1:5], ids[:, 5:])
    assert torch.equal(ids, repeated_tokens(50, 3, 4, seed=1, first=9))
    assert not torch.equal(ids, repeated_tokens(50, 3, 4, seed=2, first=9))
    assert torch.equal(torch.get_rng_state(), before)


def test_a_model_that_copies_has_a_previous_token_head_and_an_induction_head() -> None:
    scores = head_scores(copying_model(), rows=16, period=6)
    previous, induction = (_numbers(scores, name) for name in ("previous_token", "induction"))
    assert previous[0] > 0.99 > 0.3 > previous[1]
    assert induction[1] > 0.9 > 0.3 > induction[0]
    assert max(_numbers(scores, "duplicate_token")) < 0.3
    assert scores.first_loss > 3.0 > 0.5 > scores.repeat_loss
    plain = head_scores(gpt(), rows=16, period=6)
    assert max(max(of_heads.tolist()) for of_heads in plain.induction if of_heads is not None) < 0.5


def _numbers(scores: HeadScores, name: str) -> list[float]:
    return [float(of_heads) for of_heads in getattr(scores, name)]


def test_diagnostics_show_the_strongest_head_of_each_block() -> None:
    model, ids = copying_model(), random_ids(VOCAB, 1, 4)
    figures = measure(Probe.take(model, ids, ids))
    assert figures["induction"][1] > 0.9 > 0.3 > figures["induction"][0]  # type: ignore[operator]
    assert figures["previous_token"][0] > 0.99  # type: ignore[operator]
    model = gpt()
    probe = Probe.take(model, ids % 11, ids % 11)
    assert probe.head_scores is not None
    assert measure(probe)["induction"] == [float(heads.max()) for heads in probe.head_scores.induction]  # type: ignore[union-attr]


def test_the_period_is_what_the_model_can_read() -> None:
    assert longest_period(gpt()) == 6
    assert longest_period(gpt(), extra=1) == 6
    assert longest_period(gpt(position="rotary")) == 64
    assert longest_period(build({"memory": SEGMENTS, "position": "rotary"})) == SEGMENTS["segment"] // 2
    tiny = SingleHeadModel(SingleHeadConfig(dim=8, block_size=3, vocab_size=11))
    with pytest.raises(CallError, match="the repeated sequence has 1 tokens; it must have at least 2"):
        head_scores(tiny)
    with pytest.raises(CallError, match="rows is 0; it must be 1 or more"):
        head_scores(gpt(), rows=0)
    with pytest.raises(CallError, match="learned positions end at block_size 13"):
        head_scores(gpt(), period=7)
    ids = random_ids(11, 1, 3)
    figures = measure(Probe.take(tiny, ids, ids))
    assert figures["induction"] == figures["previous_token"] == [None]


def test_blocks_without_a_softmax_have_no_scores() -> None:
    scores = head_scores(gpt(attention=["delta_net", "full"]), period=4)
    assert scores.induction[0] is None
    assert scores.induction[1] is not None
    none = gpt(attention="delta_net")
    assert head_scores(none, period=4).previous_token == [None, None]
    assert np.isnan(sink_rate(sink_scores(none, random_ids(11, 1, 4))))


# --- sinks -------------------------------------------------------------------------------------------------------


def test_importance_is_the_mean_over_the_tokens_that_can_see_a_key() -> None:
    model, ids = gpt(attention="sink"), random_ids(11, 2, 5)
    pattern = attention_patterns(model, ids)[0]
    assert pattern is not None
    importance = key_importance(pattern)
    for k in range(5):
        expected = np.mean([pattern[1, 0, i, pattern.shape[-1] - 5 + k].item() for i in range(k, 5)])
        assert float(importance[1, 0, k]) == pytest.approx(expected, rel=1e-12)
    scores = sink_scores(model, ids, position=2)
    assert torch.equal(scores[0], importance[..., 2].mean(dim=0))  # type: ignore[arg-type]


def test_a_head_that_attends_to_the_first_token_alone_is_a_sink() -> None:
    only_first, uniform = torch.zeros(1, 1, 8, 8), torch.ones(8, 8).tril()[None, None]
    only_first[..., 0] = 1.0
    uniform = uniform / uniform.sum(dim=-1, keepdim=True)
    scores = [key_importance(p)[..., 0].mean(dim=0) for p in (only_first, uniform)]
    assert float(scores[0]) == 1.0
    assert float(scores[1]) == pytest.approx(sum(1 / n for n in range(1, 9)) / 8)
    assert sink_rate([*scores, None], threshold=0.5) == 0.5
    model = gpt(position="none")
    with torch.no_grad():  # every query is along the key of token 3 alone
        attention = model.blocks[0].attention
        attention.qkv.weight[:16] = 0
        attention.qkv.bias[:8] = 100.0
        attention.qkv.weight[8:16] = model.token_embedding.weight[3] - model.token_embedding.weight[1]
        attention.qkv.bias[8:16] = 0
    seen = sink_scores(model, torch.tensor([[3, 1, 1, 1, 1, 1]]))[0]
    assert seen is not None
    assert sink_rate([seen]) == 1.0


def test_the_one_head_model_has_one_head() -> None:
    model = randomise(SingleHeadModel(SingleHeadConfig(dim=8, block_size=8, vocab_size=11)).double())
    (scores,) = sink_scores(model, random_ids(11, 2, 6))
    assert scores is not None
    assert scores.shape == (1,)
    assert head_scores(model).induction[0].shape == (1,)  # type: ignore[union-attr]


def test_lookback_counts_from_the_end_of_the_keys() -> None:
    pattern = torch.rand(3, 6, 8, generator=torch.Generator().manual_seed(0))
    for back, start in ((1, 1), (2, 4), (3, 3)):
        expected = torch.stack([pattern[:, i, 2 + i - back] for i in range(start, 6)]).mean(dim=0)
        torch.testing.assert_close(lookback_score(pattern, back, start), expected)
