"""μP: table 8 by type of weight, and activations that do not grow with the width."""

import dataclasses
import math

import pytest
import torch

from lightning_gpt.errors import CallError
from lightning_gpt.models import GPT, GPTConfig, SingleHeadConfig, SingleHeadModel
from lightning_gpt.models.registry import Given
from lightning_gpt.training.coordinates import coordinate_check
from lightning_gpt.training.mup import Factors, MuP, factors, rescale
from lightning_gpt.training.optim import Optimization, optimizer

NARROW = GPTConfig(n_layer=2, n_head=2, dim=16, block_size=8, vocab_size=40)
WIDE = dataclasses.replace(NARROW, dim=64, n_head=8)
WIDTHS = [64, 128, 256, 512]


def test_factors_are_those_of_table_8() -> None:
    found = factors(GPT(dataclasses.replace(WIDE, tie_embeddings=False)), MuP(base_dim=16))
    hidden = Factors(start=1 / 2, rate=1 / 4)
    for layer in range(2):
        for matrix in ("attention.qkv", "attention.w_o", "ffn.up", "ffn.down"):
            assert found.pop(f"blocks.{layer}.{matrix}.weight") == hidden
    assert found.pop("final_norm.weight") == found.pop("final_norm.bias") == Factors(start=1 / 4, rate=1 / 4)
    assert {"token_embedding.weight", "positions.weight", "head.linear.weight", "blocks.0.ffn.up.bias"} <= set(found)
    assert set(found.values()) == {Factors()}


def test_a_router_is_an_output() -> None:
    config = dataclasses.replace(WIDE, ffn={"kind": "moe", "n_expert": 4})
    found = factors(GPT(config), MuP(base_dim=16))
    assert found["blocks.0.ffn.router.weight"] == Factors(start=1 / 4, rate=1 / 4)
    assert found["blocks.0.ffn.experts.up"] == Factors(start=1 / 2, rate=1 / 4)


def test_scores_of_wider_heads_are_divided_by_their_width() -> None:
    """``q·k / √d`` with the gain of q at √(base / d) is ``√base · q·k / d``."""
    config = dataclasses.replace(WIDE, n_head=2, qk_norm="rms")
    model = GPT(config)
    rescale(model, MuP(base_dim=16, base_head_dim=8))
    gain = model.blocks[0].attention.q_norm.weight
    torch.testing.assert_close(gain.detach(), torch.full((32,), math.sqrt(8 / 32)))
    assert torch.equal(model.blocks[0].attention.k_norm.weight, torch.ones(32))


@pytest.mark.parametrize(
    ("attention", "expected"), [({"kind": "full", "score_width": 16}, 8 / 32), ("differential", 0.5)]
)
def test_scores_are_divided_by_the_width_whatever_the_layer_divides_by(attention: Given, expected: float) -> None:
    model = GPT(dataclasses.replace(WIDE, n_head=2, qk_norm="rms", attention=attention))
    gains = model.blocks[0].attention.query_gains()
    names = [name for name, each in model.named_parameters() if any(each is gain for gain in gains)]
    found = factors(model, MuP(base_dim=16, base_head_dim=8))
    assert [found[name].start for name in names] == pytest.approx([expected] * len(gains))


def test_heads_with_a_width_of_their_own_are_as_wide_in_the_base() -> None:
    config = dataclasses.replace(WIDE, n_head=8, attention={"kind": "full", "head_dim": 12}, qk_norm="rms")
    found = factors(GPT(config), MuP(base_dim=16))
    assert found["blocks.0.attention.q_norm.weight"] == Factors()
    assert MuP(base_dim=32).base_config(dataclasses.replace(config, n_head=6, dim=64)).n_head == 3


def test_the_base_itself_is_as_without() -> None:
    torch.manual_seed(0)
    model = GPT(NARROW)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    rescale(model, MuP(base_dim=16))
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    plain, scaled = (optimizer(model, Optimization(mup=mup)) for mup in (None, MuP(base_dim=16)))
    assert str(plain.param_groups) == str(scaled.param_groups)


def test_rates_follow_and_decay_per_step_does_not() -> None:
    model = GPT(WIDE)
    groups = optimizer(model, Optimization(lr=0.01, weight_decay=0.1, mup=MuP(base_dim=16))).param_groups
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    by_name = {names[id(p)]: group for group in groups for p in group["params"]}
    assert by_name["blocks.0.ffn.up.weight"]["lr"] == pytest.approx(0.0025)
    assert by_name["token_embedding.weight"]["lr"] == 0.01
    assert groups[0]["lr"] == 0.01, "the first group's is what is logged as train/lr"
    for name in ("blocks.0.ffn.up.weight", "token_embedding.weight"):
        assert by_name[name]["lr"] * by_name[name]["weight_decay"] == pytest.approx(0.001)
    assert by_name["final_norm.weight"]["weight_decay"] == 0


@pytest.fixture(scope="module")
def moved() -> dict[str, dict[str, list[list[float]]]]:
    return {
        "standard": coordinate_check(WIDTHS, seeds=(0,)),
        "mup": coordinate_check(WIDTHS, mup=MuP(base_dim=64), seeds=(0,)),
        "mup, wide heads": coordinate_check(
            WIDTHS,
            mup=MuP(base_dim=64, base_head_dim=32),
            config=GPTConfig(n_layer=2, n_head=2, dim=64, block_size=32, vocab_size=128, qk_norm="rms"),
            seeds=(0,),
        ),
    }


@pytest.mark.parametrize("what", ["mup", "mup, wide heads"])
def test_activations_are_flat_in_the_width_under_mup(moved: dict, what: str) -> None:
    for name, steps in moved[what].items():
        for row in steps:
            assert max(row) < 1.2 * row[0], f"{name} grows with the width: {row}"
            assert row[-1] > row[0] / 4, f"{name} vanishes with the width: {row}"


def test_activations_grow_with_the_width_without(moved: dict) -> None:
    for name, steps in moved["standard"].items():
        for row in steps:
            assert row[-1] > 3 * row[0], f"{name} was to grow with the width: {row}"


@pytest.mark.parametrize(
    ("config", "mup", "said"),
    [
        (WIDE, {"base_dim": 12}, r"base_dim 12 is not a multiple of the width of a head, 8"),
        (
            dataclasses.replace(WIDE, n_head=3, attention={"kind": "full", "head_dim": 8}),
            {"base_dim": 16},
            "a head, 21.3",
        ),
        (
            dataclasses.replace(WIDE, attention={"kind": "grouped", "n_kv_head": 4}),
            {"base_dim": 16},
            "mup.base_dim 16 makes a base model with 2 heads, which cannot be built: .*n_kv_head is 4",
        ),
        (dataclasses.replace(WIDE, residual="post"), {"base_dim": 16}, r"gain of the final norm"),
        (dataclasses.replace(WIDE, n_head=2), {"base_dim": 16, "base_head_dim": 8}, r"qk_norm rms .* n_head be 8"),
        (
            dataclasses.replace(WIDE, residual="attention_residuals"),
            {"base_dim": 16},
            "residuals makes scores",
        ),
        (
            dataclasses.replace(WIDE, attention="spherical"),
            {"base_dim": 16},
            "factors of attention spherical",
        ),
        (dataclasses.replace(WIDE, logit_scale=True, tie_embeddings=False), {"base_dim": 16}, "factors of logit_scale"),
    ],
)
def test_what_cannot_be_scaled_is_refused(config: GPTConfig, mup: dict[str, int], said: str) -> None:
    with pytest.raises(CallError, match=said):
        rescale(GPT(config), MuP(**mup))


def test_the_single_head_is_refused() -> None:
    with pytest.raises(CallError, match="mup scales a GPT; this model is a single_head"):
        rescale(SingleHeadModel(SingleHeadConfig(dim=8, vocab_size=40)), MuP(base_dim=8))


@pytest.mark.parametrize("wrong", [{"base_dim": 0}, {"base_dim": 8, "base_head_dim": 0}])
def test_wrong_bases_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(CallError, match="is 0; it must be a whole number from 1 to 1,048,576"):
        MuP(**wrong)
