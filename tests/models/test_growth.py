"""A deepened model is the same function, and every weight of it can be trained."""

from typing import Any

import pytest
import torch

from lightning_gpt.errors import CallError
from lightning_gpt.models import GPT, GPTConfig
from lightning_gpt.models.from_trained.growth import deepen, grow
from lightning_gpt.training.optim import adamw
from tests.models.helpers import random_ids
from tests.models.variants import SIZES, build, name_of

GROWN: list[dict[str, Any]] = [
    *({"residual": rule} for rule in ("pre", "layerscale", "rezero", "parallel")),
    {"bias": False, "norm": "rms", "ffn": "swiglu", "position": "rotary", "tie_embeddings": False},
    {"ffn": {"kind": "moe", "n_expert": 4, "n_shared": 1}},
    {"attention": "differential"},
    {"attention": ["full", "multi_query"], "ffn": ["gelu", "relu", "swiglu"]},
    {"layer_drop": {"kind": "linear", "rate": 0.3}},
]


@pytest.mark.parametrize("n_layer", [3, 7])
@pytest.mark.parametrize("changes", GROWN, ids=name_of)
def test_a_deepened_model_is_the_same_function(changes: dict[str, Any], n_layer: int) -> None:
    model, ids = build(changes), random_ids(17, 2, 11)
    deep = deepen(model, n_layer)
    assert len(deep.blocks) == deep.config.n_layer == n_layer
    torch.testing.assert_close(deep(ids), model(ids), rtol=0, atol=0)
    assert deep.training == model.training
    assert deep.unembedding.dtype == torch.float64


@pytest.mark.parametrize("changes", GROWN[:4], ids=name_of)
def test_every_new_weight_moves_within_two_steps(changes: dict[str, Any]) -> None:
    deep = deepen(build(changes), 3).train()
    before = {name: weight.detach().clone() for name, weight in deep.blocks[2].named_parameters()}
    optimizer, ids = adamw(deep, lr=1e-2, weight_decay=0.0), random_ids(17, 4, 12)
    for _ in range(3):
        optimizer.zero_grad()
        deep.loss(ids, ids.roll(-1, 1)).backward()
        optimizer.step()
    assert [name for name, weight in deep.blocks[2].named_parameters() if torch.equal(before[name], weight)] == []


def test_a_new_block_has_the_weights_of_the_trained_one_below_it_but_for_its_projections() -> None:
    model = build({"n_layer": 2})
    deep = deepen(model, 5)
    for layer in range(2, 5):
        source = dict(model.blocks[layer % 2].named_parameters())
        for name, weight in deep.blocks[layer].named_parameters():
            expected = torch.zeros_like(weight) if ".w_o." in name or ".down." in name else source[name]
            assert torch.equal(weight, expected), name


def test_what_weights_do_not_depend_on_may_differ() -> None:
    shallow = build({})
    deep = build({"n_layer": 4, "dropout": 0.5, "checkpointing": "block", "attention_backend": "manual"})
    grow(shallow, deep)
    ids = random_ids(17, 2, 11)
    torch.testing.assert_close(deep(ids), shallow(ids), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("changes", "n_layer", "message"),
    [
        ({}, 2, "n_layer is 2; to deepen a model it must be more than its 2"),
        (
            {"residual": "post"},
            4,
            "residual is 'post', under which no layer leaves the stream as it is; a model can be",
        ),
        ({"residual": "deepnorm"}, 4, "residual is 'deepnorm'"),
        ({"residual": "sandwich"}, 4, "residual is 'sandwich'"),
        ({"n_unique": 1}, 4, "n_unique is 1: a layer more would be one of the shared blocks"),
    ],
)
def test_what_cannot_keep_the_function_is_refused(changes: dict[str, Any], n_layer: int, message: str) -> None:
    with pytest.raises(CallError) as refused:
        deepen(build(changes), n_layer)
    assert message in str(refused.value)


def test_a_model_that_differs_in_more_than_depth_is_refused_with_both_values() -> None:
    with pytest.raises(
        CallError, match="number of layers only: n_head is 4 there and 2 here, norm is layer there and rms"
    ):
        grow(build({}), GPT(GPTConfig(**{**SIZES, "n_layer": 4, "n_head": 2, "norm": "rms"})))
