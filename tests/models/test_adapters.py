"""Low-rank adapters beside the linear layers of every variant, and what merging them gives."""

import math
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from lightning_gpt.errors import CallError
from lightning_gpt.models import GPT
from lightning_gpt.models.adapters import AdaptedLinear, LoRA, adapt, adapter_names, merged
from lightning_gpt.models.layer import Linear
from lightning_gpt.planning.flops import training_flops_per_token
from tests.models.helpers import random_ids, randomise
from tests.models.variants import CONFIGS, SIZES, build, fresh, name_of

LORA = LoRA(rank=3, alpha=5.0)
WITHOUT = [changes for changes in CONFIGS if "moe" in str(changes.get("ffn"))]
"""Models whose feed-forward networks may be experts, which are no linear layers."""


def adapted(changes: dict[str, Any], lora: LoRA) -> GPT:
    """A model of this variant in double precision, every weight and adapter random."""
    model = fresh(changes)
    adapt(model, lora)
    return randomise(model).double().eval()


def plain(model: GPT, changes: dict[str, Any]) -> GPT:
    twin = build(changes)
    twin.load_state_dict(merged(model.state_dict(), LORA.scale))
    return twin


def read_in_pieces(model: GPT, ids: torch.Tensor) -> torch.Tensor:
    """The hidden states of all tokens after the first twelve, read one by one."""
    cache = model.new_cache(ids.shape[1])
    model.hidden(ids[:, :12], cache=cache)
    return torch.cat([model.hidden(ids[:, at : at + 1], cache=cache) for at in range(12, ids.shape[1])], dim=1)


@pytest.mark.parametrize("changes", CONFIGS, ids=name_of)
@torch.no_grad()
def test_merged_is_adapted(changes: dict[str, Any]) -> None:
    lora = LoRA(rank=3, alpha=5.0, parts=("attention",)) if changes in WITHOUT else LORA
    model, ids = adapted(changes, lora), random_ids(SIZES["vocab_size"], 2, 20)
    twin = plain(model, changes)
    expected = model(ids)
    torch.testing.assert_close(twin(ids), expected, rtol=0, atol=1e-10)
    torch.testing.assert_close(read_in_pieces(twin, ids), read_in_pieces(model, ids), rtol=0, atol=1e-10)
    for ours, theirs in zip(model.block_views(), twin.block_views(), strict=True):
        products = ours.mixer.value_output(), theirs.mixer.value_output()
        assert (products[0] is None) == (products[1] is None)
        for one, other in zip(products[0] or (), products[1] or (), strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=1e-10)
    base = build(changes)
    base.load_state_dict(merged(model.state_dict(), 0.0))
    assert (base(ids) - expected).abs().max() > 1e-6


def test_a_fresh_adapter_changes_nothing_and_alone_is_trained() -> None:
    model, ids = fresh({}), random_ids(SIZES["vocab_size"], 2, 20)
    before = model(ids)
    linear = [part for view in model.block_views() for whole in view.parts for part in whole.modules()]
    n_linear = sum(isinstance(part, Linear) for part in linear)
    adapt(model, LORA)
    assert torch.equal(model(ids), before)
    model.loss(ids, ids.roll(-1, 1)).backward()
    names = adapter_names(model)
    assert len(names) == 2 * n_linear
    assert {name for name, each in model.named_parameters() if each.grad is not None} == names
    assert all(math.isfinite(each.grad.norm()) for each in model.parameters() if each.grad is not None)


@pytest.mark.parametrize("checkpointing", ["block", "attention"])
def test_recomputed_blocks_give_the_same_gradients(checkpointing: str) -> None:
    """The input of the first block has no gradient, as the embeddings are left as they are."""
    model, ids, gradients = adapted({}, LORA).train(), random_ids(SIZES["vocab_size"], 2, 20), []
    for changes in ({}, {"checkpointing": checkpointing}):
        twin = fresh(changes).double().train()
        adapt(twin, LORA)
        twin.load_state_dict(model.state_dict())
        twin.loss(ids, ids.roll(-1, 1)).backward()
        gradients.append({name: each.grad for name, each in twin.named_parameters() if each.grad is not None})
    assert set(gradients[0]) == adapter_names(model)
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=0, atol=1e-12)


def test_only_the_chosen_part_is_adapted_and_a_shared_block_once() -> None:
    model = fresh({"n_layer": 4, "n_unique": 2})
    adapt(model, LoRA(parts=("ffn",)))
    assert sum(isinstance(part, AdaptedLinear) for part in model.modules()) == 2 * 2
    assert all(".ffn." in name for name in adapter_names(model))


def test_experts_are_no_linear_layers() -> None:
    with pytest.raises(CallError, match=r"the ffn of layer 0 has none: choose other lora\.parts"):
        adapt(fresh({"ffn": {"kind": "moe", "n_expert": 4}}), LORA)
    with pytest.raises(CallError, match=r"lora\.parts is empty"):
        LoRA(parts=())


def test_an_adapters_input_is_dropped_in_training_only() -> None:
    base = Linear(6, 4, bias=True, maps=("stream", "hidden"))
    layer = AdaptedLinear(base, LoRA(rank=2, dropout=0.5))
    torch.nn.init.normal_(layer.adapter_b)
    x = torch.randn(64, 6)
    torch.manual_seed(0)
    kept = torch.nn.functional.dropout(x, 0.5)
    torch.manual_seed(0)
    expected = base(x) + 8.0 * kept @ layer.adapter_a.T @ layer.adapter_b.T
    torch.testing.assert_close(layer(x), expected)
    layer.eval()
    torch.testing.assert_close(layer(x), x @ layer.applied.T + base.bias)


def test_flops_are_those_that_are_counted() -> None:
    """The embeddings are left as they are, so nothing asks for the gradient of the first product's input."""
    model = fresh({"attention_backend": "manual"})
    adapt(model, LORA)
    ids = random_ids(SIZES["vocab_size"], 1, SIZES["block_size"])
    with FlopCounterMode(display=False) as counter:
        torch.nn.functional.cross_entropy(model(ids)[0], ids[0]).backward()
    first = model.block_views()[0].mixer.qkv
    left_out = 2 * (first.weight.numel() + first.adapter_a.numel())
    assert training_flops_per_token(model, ids.numel()) == counter.get_total_flops() / ids.numel() + left_out
