"""Direct logit attribution: its terms add up to the logit in every variant, and each is what its part wrote."""

from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_gpt.analysis.attribution import direct_logit_attribution
from lightning_gpt.errors import CallError
from lightning_gpt.models import GPT, GPTConfig, LanguageModel, SingleHeadConfig, SingleHeadModel
from lightning_gpt.models.norms import Norm, norms
from tests.analysis.copying_model import copying_model
from tests.models.helpers import random_ids, randomise
from tests.models.variants import CONFIGS, build, name_of

IDS, TARGETS, OTHERS = (random_ids(11, 2, 6, seed=seed) for seed in (1, 2, 3))
CLOSE = {"rtol": 1e-10, "atol": 1e-10}


def gpt(**options: Any) -> GPT:
    return randomise(GPT(GPTConfig(n_layer=2, n_head=2, dim=8, block_size=6, vocab_size=11, **options)).double()).eval()


def picked(logits: Tensor, tokens: Tensor) -> Tensor:
    return logits.gather(-1, tokens[..., None])[..., 0]


@pytest.mark.parametrize("changes", CONFIGS, ids=name_of)
def test_the_terms_add_up_to_the_logit_in_every_variant(changes: dict[str, Any]) -> None:
    model = build(changes).double().eval()
    time = model.trace_limit or 6
    ids, targets = random_ids(17, 2, time), random_ids(17, 2, time, seed=2)
    found = direct_logit_attribution(model, ids, targets)
    with torch.no_grad():
        logits = model(ids)
    torch.testing.assert_close(found.values.sum(dim=0), picked(logits, targets) - logits.mean(dim=-1), **CLOSE)
    assert len(found.parts) == len(set(found.parts)) == len(found.values)


def test_against_another_token_they_add_up_to_the_difference_of_the_logits() -> None:
    model = gpt()
    found = direct_logit_attribution(model, IDS, TARGETS, against=OTHERS, by_head=True)
    with torch.no_grad():
        logits = model(IDS)
    torch.testing.assert_close(found.values.sum(dim=0), picked(logits, TARGETS) - picked(logits, OTHERS), **CLOSE)
    assert found.parts == ["embedding", *(f"{n}.{part}" for n in (0, 1) for part in ("0", "1", "bias", "ffn")), "bias"]
    assert found.mean()["1.ffn"] == pytest.approx(float(found.values[8].mean()))


def test_each_term_is_what_the_part_wrote_scaled_by_the_final_norm() -> None:
    """From the weights: ``u · g ⊙ (w − mean w) / √(var x + ε)`` of what a head or an FFN wrote."""
    model = gpt()
    with torch.no_grad(), model.record() as trace:
        model(IDS)
    last, direction = trace["blocks.1.after_ffn"], model.unembedding[TARGETS] - model.unembedding.mean(dim=0)
    scale = 1 / (last.var(dim=-1, keepdim=True, correction=0) + 1e-5).sqrt()

    def term(written: Tensor) -> Tensor:
        centred = (written - written.mean(dim=-1, keepdim=True)) * scale * model.final_norm.weight
        return (centred * direction).sum(dim=-1)

    whole = direct_logit_attribution(model, IDS, TARGETS)
    split = direct_logit_attribution(model, IDS, TARGETS, by_head=True)
    for layer in range(2):
        attention = model.blocks[layer].attention
        for head in range(2):
            written = (
                trace["attention.head_output", layer][:, head] @ attention.w_o.weight[:, 4 * head : 4 * head + 4].T
            )
            torch.testing.assert_close(split.values[split.parts.index(f"{layer}.{head}")], term(written), **CLOSE)
        for name, written in (("attention", "attention.output"), ("ffn", "ffn.output")):
            torch.testing.assert_close(
                whole.values[whole.parts.index(f"{layer}.{name}")], term(trace[written, layer]), **CLOSE
            )
    torch.testing.assert_close(whole.values[-1], (model.final_norm.bias * direction).sum(dim=-1), **CLOSE)


def test_the_head_that_copies_writes_the_logit() -> None:
    model, ids = copying_model(), torch.arange(12)[None] % 6
    found = direct_logit_attribution(model, ids[:, 6:] * 0 + ids[:, :6], ids[:, 1:7])
    assert max(found.mean(), key=lambda part: found.mean()[part]) != "1.attention"  # nothing to copy yet
    found = direct_logit_attribution(model, ids[:, :11], ids[:, 1:], by_head=True)
    repeated = dict(zip(found.parts, found.values[:, :, 6:].mean(dim=(1, 2)).tolist(), strict=True))
    assert max(repeated, key=lambda part: repeated[part]) == "1.0"
    assert repeated["1.0"] > 5.0


def test_heads_are_refused_where_the_stream_does_not_get_their_outputs() -> None:
    for changes, layer in (({"residual": "sandwich"}, 0), ({"attention": ["full", "linear"]}, 1)):
        model = gpt(**changes)
        if changes.get("attention"):
            direct_logit_attribution(model, IDS, TARGETS)
            continue
        with pytest.raises(CallError, match=f"block {layer} does not add its heads' outputs to the stream as they are"):
            direct_logit_attribution(model, IDS, TARGETS, by_head=True)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_heads_of_a_model_in_few_bits_are_told_apart_from_what_they_are_not(dtype: torch.dtype) -> None:
    found = direct_logit_attribution(gpt().to(dtype), IDS, TARGETS, by_head=True)
    assert len(found.parts) == len(set(found.parts)) > 4
    for changes in ({"residual": "sandwich"}, {"attention": "gated"}):
        with pytest.raises(CallError, match="does not add its heads' outputs to the stream as they are"):
            direct_logit_attribution(gpt(**changes).to(dtype), IDS, TARGETS, by_head=True)


@pytest.mark.parametrize("time", [1, 5])
def test_heads_of_one_token_are_refused_where_those_of_many_are(time: int) -> None:
    with pytest.raises(CallError, match="block 0 does not add its heads' outputs to the stream as they are"):
        direct_logit_attribution(gpt(attention="gated"), IDS[:1, :time], TARGETS[:1, :time], by_head=True)


def test_the_one_head_model_has_an_embedding_a_head_and_no_bias() -> None:
    model: LanguageModel = SingleHeadModel(SingleHeadConfig(dim=8, block_size=6, vocab_size=11))
    model = randomise(model.double()).eval()
    found = direct_logit_attribution(model, IDS, TARGETS, by_head=True)
    assert found.parts == ["embedding", "0.0", "0.bias", "bias"]
    with torch.no_grad():
        logits = model(IDS)
    torch.testing.assert_close(found.values.sum(dim=0), picked(logits, TARGETS) - logits.mean(dim=-1), **CLOSE)
    assert found.values[2:].abs().max() < 1e-12


@pytest.mark.parametrize("kind", norms.names)
def test_shares_of_a_norm_are_linear_and_add_up(kind: str) -> None:
    norm: Norm = norms.make(kind, dim=6, bias=True)
    norm = randomise(norm.double())
    parts = torch.randn(3, 4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    whole = parts.sum(dim=0)
    whole[0, 0] = 0.0  # an entry of 0 has no scale of its own
    parts[0, 0, 0] -= parts[:, 0, 0].sum()
    shares = norm.share(parts, whole)
    torch.testing.assert_close(shares.sum(dim=0), norm(whole) - norm(torch.zeros_like(whole)), **CLOSE)
    torch.testing.assert_close(norm.share(2 * parts[0] - parts[1], whole), 2 * shares[0] - shares[1], **CLOSE)


@pytest.mark.parametrize("changes", [{"residual": "sandwich"}, {"attention": "gated"}], ids=str)
def test_one_large_token_does_not_hide_that_heads_are_not_added_as_they_are(changes: dict[str, Any]) -> None:
    model = gpt(**changes).to(torch.bfloat16)
    with torch.no_grad():
        model.token_embedding.weight[IDS[0, 0]] *= 1000
    with pytest.raises(CallError, match="does not add its heads' outputs to the stream as they are"):
        direct_logit_attribution(model, IDS, TARGETS, by_head=True)


@pytest.mark.parametrize("kind", ["layer", "rms", "rms_plus_one", "scale"])
def test_a_norm_s_share_of_an_entry_is_the_limit_where_the_whole_is_0_there(kind: str) -> None:
    """These norms scale all entries alike, so an entry of 0 in the whole says nothing about its parts."""
    norm = randomise(norms.make(kind, dim=4, bias=True).double())
    whole = torch.tensor([0.0, 1.0, -2.0, 3.0], dtype=torch.float64)
    part = torch.tensor([1.0, 1.0, 0.0, 0.0], dtype=torch.float64)
    nearly = whole + torch.tensor([1e-9, 0.0, 0.0, 0.0], dtype=torch.float64)
    torch.testing.assert_close(norm.share(part, whole), norm.share(part, nearly), rtol=1e-7, atol=1e-7)
    assert norm.share(part, whole)[0].abs() > 0.1
