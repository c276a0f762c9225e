"""What brings the input along to later layers, and branches that start at 0."""

from typing import Any

import numpy as np
import pytest
import torch

from lightning_gpt.errors import CallError
from lightning_gpt.models import GPT, GPTConfig
from tests.models.helpers import arrays, random_ids
from tests.models.variants import SIZES, build
from tests.reference import remedies
from tests.reference.formulas import below

CLOSE = {"rtol": 1e-9, "atol": 1e-10}
N_LAYER = 3


@pytest.mark.parametrize("backend", ["sdpa", "manual"])
@pytest.mark.parametrize("kind", ["value_residual", "value_embedding"])
def test_values_that_are_brought_along_equal_the_formula_of_a_stack(kind: str, backend: str) -> None:
    model = build({"n_layer": N_LAYER, "attention": kind, "attention_backend": backend})
    ids, state = random_ids(17, 1, 9), arrays(model)
    with torch.no_grad(), model.record(["*.attention_norm", "*.attention.output"]) as trace:
        model(ids)
    states = [below(state, f"blocks.{layer}.attention") for layer in range(N_LAYER)]
    normed = [trace[f"blocks.{layer}.attention_norm"][0].numpy(force=True) for layer in range(N_LAYER)]
    tables = (
        [state["value_table.weight"][ids[0].numpy(force=True)] for state in states]
        if kind == "value_embedding"
        else None
    )
    for layer, expected in enumerate(remedies.value_layers(normed, states, SIZES["n_head"], tables)):
        np.testing.assert_allclose(trace[f"blocks.{layer}.attention.output"][0].numpy(force=True), expected, **CLOSE)


def test_layers_whose_values_differ_in_width_each_have_a_first_layer_of_their_width() -> None:
    wide = {"kind": "value_residual", "head_dim": 6}
    model = build({"n_layer": 4, "attention": ["value_residual", wide]})
    ids, state = random_ids(17, 1, 9), arrays(model)
    with torch.no_grad(), model.record(["*.attention_norm", "*.attention.output"]) as trace:
        model(ids)
    for layers in ((0, 2), (1, 3)):
        states = [below(state, f"blocks.{layer}.attention") for layer in layers]
        normed = [trace[f"blocks.{layer}.attention_norm"][0].numpy(force=True) for layer in layers]
        expected = remedies.value_layers(normed, states, SIZES["n_head"], None)
        for layer, output in zip(layers, expected, strict=True):
            np.testing.assert_allclose(trace[f"blocks.{layer}.attention.output"][0].numpy(force=True), output, **CLOSE)


def test_the_embedding_skip_equals_the_formula_of_a_stack() -> None:
    model = build({"n_layer": N_LAYER, "residual": "embedding_skip"})
    ids, state = random_ids(17, 1, 9), arrays(model)
    with torch.no_grad(), model.record(["embedding", f"blocks.{N_LAYER - 1}.after_ffn"]) as trace:
        model(ids)
    states = [below(state, f"blocks.{layer}") for layer in range(N_LAYER)]
    shares = [(float(state["stream_shares"][0]), float(state["stream_shares"][1])) for state in states]
    expected = remedies.mixed_stack(trace["embedding"][0].numpy(force=True), states, SIZES["n_head"], shares)
    np.testing.assert_allclose(trace[f"blocks.{N_LAYER - 1}.after_ffn"][0].numpy(force=True), expected, **CLOSE)


def test_an_embedding_skip_starts_as_pre_ln() -> None:
    torch.manual_seed(0)
    skipping = GPT(GPTConfig(**SIZES, residual="embedding_skip"))
    torch.manual_seed(0)
    plain = GPT(GPTConfig(**SIZES))
    ids = random_ids(17, 2, 9)
    torch.testing.assert_close(skipping(ids), plain(ids))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"residual": "parallel"},
        {"ffn": {"kind": "moe", "n_expert": 2, "top_k": 1}},
        {"ffn": ["none", "swiglu"]},
    ],
)
def test_with_zero_projections_every_block_starts_as_no_change_and_learns(changes: dict[str, Any]) -> None:
    torch.manual_seed(0)
    model = GPT(GPTConfig(**{**SIZES, **changes, "zero_projections": True})).double()
    ids = random_ids(17, 2, 9)
    with torch.no_grad(), model.record(["embedding", "blocks.1.after_ffn"]) as trace:
        model(ids)
    torch.testing.assert_close(trace["blocks.1.after_ffn"], trace["embedding"], rtol=0, atol=0)
    torch.autograd.backward(model.loss(ids, ids.roll(-1, 1)))
    outputs = [
        p for name, p in model.named_parameters() if name.endswith(("w_o.weight", "down.weight", "experts.down"))
    ]
    assert outputs
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in outputs)


@pytest.mark.parametrize("rule", ["none", "rezero"])
def test_zero_projections_are_refused_where_nothing_would_be_learned(rule: str) -> None:
    with pytest.raises(
        CallError,
        match=f"zero_projections and residual {rule} cannot be combined: it does not train from such a start",
    ):
        GPTConfig(**SIZES, residual=rule, zero_projections=True)
