"""A mixture that starts from a dense model is the same function."""

from typing import Any

import pytest
import torch

from lightning_gpt.errors import CallError
from lightning_gpt.models import GPT, GPTConfig
from lightning_gpt.models.from_trained.upcycling import upcycle
from tests.models.helpers import random_ids, randomise

SIZES: dict[str, Any] = {"n_layer": 3, "n_head": 2, "dim": 16, "block_size": 12, "vocab_size": 23}


def build(seed: int = 0, **changes: Any) -> GPT:
    return randomise(GPT(GPTConfig(**{**SIZES, **changes})), seed).double().eval()


@pytest.mark.parametrize("router", ["softmax", "sigmoid"])
@pytest.mark.parametrize("balance", ["loss", "bias"])
@pytest.mark.parametrize(("kind", "hidden"), [("gelu", 64), ("swiglu", 40)])
def test_the_function_is_preserved_and_the_routers_are_kept(kind: str, hidden: int, router: str, balance: str) -> None:
    mixture = {"kind": "moe", "n_expert": 5, "top_k": 3, "expert": kind, "hidden": hidden}
    dense = build(ffn=kind)
    sparse = build(1, ffn=[mixture | {"router": router, "balance": balance}, kind])
    router_weight = sparse.blocks[0].ffn.router.weight.clone()
    ids = random_ids(23, 2, 12)
    assert not torch.allclose(sparse(ids), dense(ids))
    upcycle(dense, sparse)
    torch.testing.assert_close(sparse(ids), dense(ids), rtol=1e-10, atol=1e-10)
    assert torch.equal(sparse.blocks[0].ffn.router.weight, router_weight)
    assert torch.equal(sparse.blocks[2].ffn.experts.up[4], dense.blocks[2].ffn.up.weight)


MIXTURE = {"kind": "moe", "hidden": 64}


def test_layers_that_route_tokens_are_upcycled_too() -> None:
    routing = {"kind": "mixture_of_depths", "every": 2, "capacity": 0.5}
    dense, sparse = build(token_routing=routing), build(1, token_routing=routing, ffn=MIXTURE)
    upcycle(dense, sparse)
    ids = random_ids(23, 2, 12)
    torch.testing.assert_close(sparse(ids), dense(ids), rtol=1e-10, atol=1e-10)


def test_one_expert_whose_weight_is_1_is_the_dense_network() -> None:
    dense, sparse = build(), build(1, ffn=MIXTURE | {"top_k": 1, "normed_gates": True})
    upcycle(dense, sparse)
    ids = random_ids(23, 2, 12)
    torch.testing.assert_close(sparse(ids), dense(ids), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    ("dense", "sparse", "message"),
    [
        ({}, {"ffn": "moe"}, "set ffn hidden to 64, the dense network's; it is 32"),
        ({}, {"ffn": MIXTURE | {"top_k": 1}}, "ffn top_k is 1 and must be at least 2"),
        ({}, {"ffn": MIXTURE | {"normed_gates": False}}, "the weights of a token's experts must add up to 1"),
        ({}, {"ffn": MIXTURE | {"gate_factor": 2.0}}, "the weights of a token's experts must add up to 1"),
        ({}, {"ffn": MIXTURE | {"n_shared": 1}}, "ffn n_shared must be 0"),
        ({"ffn": "relu2"}, {"ffn": MIXTURE}, "ffn of layer 0 is relu2 in the dense model, but its expert here is gelu"),
        ({"ffn": "moe"}, {"ffn": MIXTURE}, "ffn of layer 0 is moe in the dense model, which is not a dense network"),
        ({"norm": "rms"}, {"ffn": MIXTURE}, "differs only in its feed-forward networks: norm is rms there and layer"),
        ({}, {"ffn": MIXTURE, "n_layer": 2}, "n_layer is 3 there and 2 here"),
    ],
)
def test_what_could_not_be_the_same_function_is_refused(
    dense: dict[str, Any], sparse: dict[str, Any], message: str
) -> None:
    with pytest.raises(CallError) as refused:
        upcycle(build(**dense), build(**sparse))
    assert message in str(refused.value)
