"""Changes written as text, and what they do to a pass."""

import pytest
import torch

from lightning_gpt.analysis.changes import Change, change_edits, parse_changes
from lightning_gpt.analysis.interventions import Ablation, Part, ablated_loss, patched_logits, text_loss
from lightning_gpt.errors import CallError
from lightning_gpt.models import GPT, GPTConfig
from tests.models.helpers import randomise


def model() -> GPT:
    return randomise(GPT(GPTConfig(n_layer=2, n_head=2, dim=16, block_size=16, vocab_size=32))).double().eval()


IDS, OTHER = torch.arange(8)[None], torch.arange(8).flip(0)[None] + 5


def changed(of: GPT, changes: str, other: torch.Tensor | None = None) -> torch.Tensor:
    with torch.no_grad(), of.record([], change_edits(of, parse_changes(changes), IDS, other)):
        logits: torch.Tensor = of(IDS)
    return logits


def test_a_change_is_written_as_it_is_read() -> None:
    for text in ("3.2:zero", "3.ffn:mean", "0.10:scale:0.5", "0.1:scale:-2", "1.0:patch", "1.ffn:patch:4"):
        assert str(Change.parse(f" {text} ")) == text
    for factor in (1 / 3, 0.12345678, -1e-9, 1000.0):  # every digit, so that the text is the same change
        change = Change(Part(0, 1), "scale", factor)
        assert Change.parse(str(change)) == change
    assert parse_changes("") == parse_changes("  ") == []
    assert parse_changes("1.0:patch:4") == [Change(Part(1, 0), "patch", position=4)]


@pytest.mark.parametrize(
    "text", ["zero", "1.0", "1.0:", "1.0:mean:2", "1.0:scale", "1.0:scale:x", "1.0:patch:-1", "1.x:zero"]
)
def test_what_is_not_a_change_is_refused(text: str) -> None:
    with pytest.raises(CallError, match=r"is not a (change; allowed: PART:zero|part of a model)"):
        parse_changes(text)


@pytest.mark.parametrize("kind", ["zero", "mean"])
def test_taking_parts_out_is_ablation(kind: Ablation) -> None:
    of, parts = model(), [Part(0, 1), Part(1, None), Part(0, 0)]
    edits = change_edits(of, [Change(part, kind) for part in parts], IDS)
    assert text_loss(of, IDS, edits) == pytest.approx(ablated_loss(of, IDS, parts, kind), abs=1e-10)


def test_a_scale_of_one_changes_nothing_and_of_zero_takes_out() -> None:
    of = model()
    with torch.no_grad():
        plain = of(IDS)
    torch.testing.assert_close(changed(of, "0.1:scale:1,1.ffn:scale:1"), plain, atol=1e-10, rtol=0)
    torch.testing.assert_close(changed(of, "0.1:scale:0"), changed(of, "0.1:zero"), atol=1e-10, rtol=0)
    assert not torch.allclose(changed(of, "0.1:scale:2"), plain)


def test_a_patch_takes_the_output_from_the_second_text() -> None:
    of = model()
    name = "blocks.0.ffn.output"
    expected = patched_logits(of, OTHER, IDS, name)
    torch.testing.assert_close(changed(of, "0.ffn:patch", OTHER), expected, atol=1e-10, rtol=0)
    expected = patched_logits(of, OTHER[:, :5], IDS, name, positions=[3])
    torch.testing.assert_close(changed(of, "0.ffn:patch:3", OTHER[:, :5]), expected, atol=1e-10, rtol=0)
    everything = changed(of, "0.0:patch,0.1:patch", OTHER)
    expected = patched_logits(of, OTHER, IDS, "blocks.0.attention.head_output")
    torch.testing.assert_close(everything, expected, atol=1e-10, rtol=0)
