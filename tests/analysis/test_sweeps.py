"""A patching sweep is one patch after another, and finds what a model written by hand is known to do."""

import pytest
import torch

from lightning_gpt.analysis import sweeps
from lightning_gpt.analysis.attribution import direct_logit_attribution
from lightning_gpt.analysis.interventions import patched_logits
from lightning_gpt.analysis.sweeps import logit_difference, patching_sweep
from lightning_gpt.errors import CallError
from lightning_gpt.models import GPT, GPTConfig, SingleHeadConfig, SingleHeadModel
from tests.analysis.copying_model import copying_model
from tests.models.helpers import random_ids, randomise

SOURCE, TARGET = (random_ids(11, 2, 5, seed=seed) for seed in (1, 2))
METRIC = logit_difference(torch.tensor([3, 4]), 7)
PARTS = {"stream": "after_ffn", "attention": "attention.output", "ffn": "ffn.output"}


def gpt(**options: object) -> GPT:
    config = {"n_layer": 2, "n_head": 2, "dim": 8, "block_size": 6, "vocab_size": 11, **options}
    return randomise(GPT(GPTConfig(**config)).double()).eval()


@pytest.mark.parametrize("what", PARTS)
def test_each_value_is_that_of_one_patch(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = gpt()
    monkeypatch.setattr(sweeps, "_MOST_TOKENS", 2 * 2 * 5)  # passes of two copies of the texts, and one alone
    found = patching_sweep(model, SOURCE, TARGET, METRIC, what)
    with torch.no_grad():
        assert found.source == pytest.approx(float(METRIC(model(SOURCE)[:, -1])))
        assert found.target == pytest.approx(float(METRIC(model(TARGET)[:, -1])))
    for layer in range(2):
        for position in range(5):
            logits = patched_logits(model, SOURCE, TARGET, f"blocks.{layer}.{PARTS[what]}", [position])
            assert float(found.values[layer, position]) == pytest.approx(float(METRIC(logits[:, -1])), rel=1e-10)
    if what == "stream":  # nothing after the last block mixes tokens, so its last position is all that counts
        torch.testing.assert_close(found.effects[1], torch.tensor([0.0, 0, 0, 0, 1]).double(), atol=1e-10, rtol=0)


def test_by_head_each_value_is_that_of_one_head() -> None:
    model = gpt(ffn="none")
    found = patching_sweep(model, SOURCE, TARGET, METRIC, "heads")
    name = "blocks.1.attention.head_output"
    with torch.no_grad():
        with model.record(name) as trace:
            model(SOURCE)
        source = trace[name]
        for head in range(2):
            edit = {
                name: lambda x, head=head: torch.cat([source[:, [h]] if h == head else x[:, [h]] for h in (0, 1)], 1)
            }
            with model.record([], edit):
                assert float(found.values[1, head]) == pytest.approx(float(METRIC(model(TARGET)[:, -1])), rel=1e-10)
    with pytest.raises(CallError, match="no layer of the model has a part ffn"):
        patching_sweep(model, SOURCE, TARGET, METRIC, "ffn")
    with pytest.raises(CallError, match=r"shapes \(2, 5\) and \(2, 4\)"):
        patching_sweep(model, SOURCE, TARGET[:, 1:], METRIC)


def test_layers_without_the_part_stay_empty_and_one_head_is_its_layer() -> None:
    mixed = gpt(ffn=["none", "gelu"])
    assert patching_sweep(mixed, SOURCE, TARGET, METRIC, "ffn").values.isnan().all(dim=1).tolist() == [True, False]
    one = randomise(SingleHeadModel(SingleHeadConfig(dim=8, block_size=6, vocab_size=11)).double()).eval()
    found = patching_sweep(one, SOURCE, TARGET, METRIC, "heads")
    logits = patched_logits(one, SOURCE, TARGET, "attention.head_output")
    assert float(found.values) == pytest.approx(float(METRIC(logits[:, -1])), rel=1e-10)
    assert patching_sweep(one, SOURCE, SOURCE, METRIC).effects.isnan().all()


def test_the_way_of_a_copied_token_is_found_and_drawn() -> None:
    """Layer 0 brings the token before to its follower, layer 1 copies it to the end, where the token occurs again."""
    model, source = copying_model(), torch.tensor([[9, 5, 6, 8, 5]])
    target = torch.tensor([[9, 5, 7, 8, 5]])
    found = patching_sweep(model, source, target, logit_difference(6, 7))
    torch.testing.assert_close(found.effects[0], torch.tensor([0.0, 0, 1, 0, 0]).double(), atol=1e-3, rtol=0)
    torch.testing.assert_close(found.effects[1], torch.tensor([0.0, 0, 0, 0, 1]).double(), atol=1e-3, rtol=0)
    picture = found.figure(["a", "b", "$c", "\n", "b"]).axes[0]
    assert picture.images[0].get_array().tolist() == found.effects.tolist()
    assert [label.get_text() for label in picture.get_xticklabels()] == ["a", "b", r"\$c", "↵", "b"]
    by_head = patching_sweep(model, source, target, logit_difference(6, 7), "heads")
    for tokens in (None, ["a", "b", "c", "d", "e"]):  # as many as there are tokens, not heads
        assert by_head.figure(tokens).axes[0].get_xlabel() == "head"
    assert by_head.effects[1].tolist() == pytest.approx([1])


def test_attribution_has_its_heads_as_a_grid() -> None:
    model = gpt()
    found = direct_logit_attribution(model, SOURCE, TARGET, by_head=True)
    grid, last = found.heads(), found.heads(-1)
    for layer in range(2):
        for head in range(2):
            term = found.values[found.parts.index(f"{layer}.{head}")]
            assert float(grid[layer, head]) == pytest.approx(float(term.mean()))
            assert float(last[layer, head]) == pytest.approx(float(term[:, -1].mean()))
    with pytest.raises(CallError, match="not by head"):
        direct_logit_attribution(model, SOURCE, TARGET).heads()
