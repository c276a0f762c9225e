"""Blocks that are left out while training, and blocks that serve several layers."""

from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from lightning_gpt.errors import CallError
from lightning_gpt.models import GPT, GPTConfig
from lightning_gpt.models.registry import Given
from lightning_gpt.models.wrappers.layer_drop import layer_drops
from tests.models.helpers import random_ids
from tests.models.variants import SIZES, build

CLOSE = {"rtol": 1e-12, "atol": 1e-12}


# --- blocks left out -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "expected"), [("constant", [0.4, 0.4, 0.4, 0.4]), ("linear", [0.1, 0.2, 0.3, 0.4])])
def test_rates_by_layer_are_those_of_the_papers(kind: str, expected: list[float]) -> None:
    drop = layer_drops.make({"kind": kind, "rate": 0.4}, n_layer=4)
    assert [drop.rate(layer) for layer in range(4)] == pytest.approx(expected)


@pytest.mark.parametrize("none", [None, "none", {"kind": "none"}], ids=str)
def test_without_layer_drop_a_training_step_runs_every_block_and_draws_nothing(none: Given) -> None:
    assert layer_drops.make_if_chosen(none, n_layer=4) is None
    model, ids = build({"n_layer": 4, "layer_drop": none}).train(), random_ids(17, 2, 9)
    x, before = model.embed(ids, model.context(ids)), torch.get_rng_state()
    for block in model.blocks:
        x = block(x)
    torch.testing.assert_close(model.hidden(ids), model.final_norm(x), **CLOSE)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("kind", ["constant", "linear"])
def test_a_step_is_the_stack_without_the_blocks_that_were_drawn(kind: str) -> None:
    """The draws are read off torch's generator; linear rates divide by the chance of being kept."""
    model, ids = build({"n_layer": 4, "layer_drop": {"kind": kind, "rate": 0.6}}).train(), random_ids(17, 2, 9)
    seen = set()
    for seed in range(12):
        torch.manual_seed(seed)
        draws = [float(torch.rand((), device="cpu")) for _ in range(4)]
        rates = [0.6] * 4 if kind == "constant" else [0.6 * (layer + 1) / 4 for layer in range(4)]
        x = model.embed(ids, model.context(ids))
        for block, draw, rate in zip(model.blocks, draws, rates, strict=True):
            if draw >= rate:
                x = block(x) if kind == "constant" else x + (block(x) - x) / (1 - rate)
        torch.manual_seed(seed)
        torch.testing.assert_close(model.hidden(ids), model.final_norm(x), **CLOSE)
        seen.add(tuple(draw >= rate for draw, rate in zip(draws, rates, strict=True)))
    assert len(seen) > 4


def test_linear_rates_leave_the_expected_stream_alone() -> None:
    """Of one block, whose two outcomes are weighed by their chances."""
    model, ids = build({"n_layer": 1, "layer_drop": {"kind": "linear", "rate": 0.3}}), random_ids(17, 1, 6)
    drop, x = layer_drops.make(model.config.layer_drop, n_layer=1), torch.randn(1, 6, 16, dtype=torch.float64)
    whole = model.blocks[0](x)
    expected = 0.3 * x + 0.7 * drop.kept(x, whole, drop.rate(0))
    torch.testing.assert_close(expected, whole, **CLOSE)
    model.train()
    assert not torch.equal(model.hidden(ids), model.eval().hidden(ids))


def test_a_block_that_is_left_out_has_gradients_of_zero_and_is_not_run() -> None:
    """Every process of data-parallel training must have a gradient for each parameter."""
    model, ids = build({"layer_drop": {"kind": "constant", "rate": 0.5}}).train(), random_ids(17, 2, 9)
    calls = []
    model.blocks[1].register_forward_hook(lambda *_: calls.append(1))
    seed = next(s for s in range(99) if [float(d) < 0.5 for d in _draws(s)] == [False, True])
    torch.manual_seed(seed)
    model.loss(ids, ids).backward()
    assert calls == []
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert all(float(parameter.grad.abs().max()) == 0 for parameter in model.blocks[1].parameters())
    assert float(model.blocks[0].attention.qkv.weight.grad.abs().max()) > 0


def _draws(seed: int) -> list[float]:
    torch.manual_seed(seed)
    return [float(torch.rand((), device="cpu")) for _ in range(2)]


@pytest.mark.cpu("its processes share over gloo")
def test_with_sharded_parameters_the_block_runs_and_its_result_is_thrown_away() -> None:
    """One process that left it out would keep the others waiting for its part of the weights."""
    model, ids = build({"layer_drop": {"kind": "constant", "rate": 0.5}}).train(), random_ids(17, 2, 9)
    seed = next(s for s in range(99) if [float(d) < 0.5 for d in _draws(s)] == [False, True])
    torch.manual_seed(seed)
    expected = model.hidden(ids).detach()
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        calls = []
        for block in model.blocks:
            fully_shard(block, mesh=init_device_mesh("cpu", (1,)))
        model.blocks[1].register_forward_hook(lambda *_: calls.append(1))
        torch.manual_seed(seed)
        hidden = model.hidden(ids)
        hidden.sum().backward()
        assert calls == [1]
        torch.testing.assert_close(hidden, expected, **CLOSE)
        assert all(float(weight.grad.to_local().abs().max()) == 0 for weight in model.blocks[1].parameters())
    finally:
        dist.destroy_process_group()


def test_in_evaluation_every_block_runs_and_nothing_is_drawn() -> None:
    plain = build({})
    model = build({"layer_drop": {"kind": "linear", "rate": 0.9}})
    ids, before = random_ids(17, 2, 9), torch.get_rng_state()
    assert torch.equal(model(ids), plain(ids))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("rate", [-0.1, 1, 1.5])
def test_a_rate_that_is_no_probability_of_leaving_out_is_refused(rate: float) -> None:
    with pytest.raises(CallError, match=f"layer_drop rate is {rate}; it must be a number of at least 0 and below 1"):
        GPT(GPTConfig(**{**SIZES, "layer_drop": {"kind": "linear", "rate": rate}}))


# --- shared blocks ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_unique", [1, 2, 3])
def test_shared_blocks_are_the_unshared_stack_with_equal_weights(n_unique: int) -> None:
    shared = build({"n_layer": 5, "n_unique": n_unique})
    plain = build({"n_layer": 5})
    plain.load_state_dict(shared.state_dict())
    ids = random_ids(17, 2, 9)
    torch.testing.assert_close(shared(ids), plain(ids), rtol=0, atol=0)
    for layer, block in enumerate(shared.blocks):
        assert block is shared.blocks[layer % n_unique]


def test_the_gradient_of_a_shared_block_is_the_sum_over_the_layers_it_serves() -> None:
    shared, plain, ids = build({"n_layer": 3, "n_unique": 1}), build({"n_layer": 3}), random_ids(17, 2, 9)
    plain.load_state_dict(shared.state_dict())
    for model in (shared, plain):
        model.loss(ids, ids.roll(-1, 1)).backward()
    for name, parameter in shared.blocks[0].named_parameters():
        total = sum(block.get_parameter(name).grad for block in plain.blocks)
        torch.testing.assert_close(parameter.grad, total, rtol=1e-10, atol=1e-12)


def test_parameters_are_those_of_the_blocks_that_differ() -> None:
    def count(**changes: Any) -> int:
        return sum(parameter.numel() for parameter in GPT(GPTConfig(**{**SIZES, **changes})).parameters())

    assert count(n_layer=8, n_unique=2) == count(n_layer=2)
    assert count(n_layer=8) - count(n_layer=8, n_unique=2) == 6 * (count(n_layer=2) - count(n_layer=1))


@pytest.mark.parametrize("checkpointing", ["none", "block"])
def test_the_trace_names_the_layers_that_are_run(checkpointing: str) -> None:
    shared = build({"n_layer": 3, "n_unique": 1, "checkpointing": checkpointing}).train()
    plain, ids = build({"n_layer": 3}).train(), random_ids(17, 1, 7)
    plain.load_state_dict(shared.state_dict())
    traces = []
    for model in (shared, plain):
        with model.record() as trace:
            model.loss(ids, ids).backward()
        traces.append(trace)
    assert set(traces[0]) == set(traces[1])
    for name in traces[1]:
        torch.testing.assert_close(traces[0][name], traces[1][name], rtol=1e-12, atol=1e-12)
    assert shared.blocks[0].attention._prefix == ""


def test_an_edit_changes_one_of_the_layers_that_a_block_serves() -> None:
    model, ids = build({"n_layer": 3, "n_unique": 1}), random_ids(17, 1, 7)
    with model.record(["blocks.*.after_ffn"]) as before:
        model(ids)
    with model.record(["blocks.*.after_ffn"], {"blocks.1.after_ffn": lambda x: x + 1}) as after:
        model(ids)
    assert torch.equal(before["blocks.0.after_ffn"], after["blocks.0.after_ffn"])
    torch.testing.assert_close(after["blocks.1.after_ffn"], before["blocks.1.after_ffn"] + 1)
    assert not torch.allclose(before["blocks.2.after_ffn"], after["blocks.2.after_ffn"])


def test_each_layer_has_a_state_of_its_own_in_the_cache() -> None:
    cache = build({"n_layer": 3, "n_unique": 1}).new_cache(8)
    assert len({id(state) for state in cache.layers}) == 3


def test_a_shared_block_starts_as_one_of_as_many_layers_as_are_run() -> None:
    """What is added to the stream is scaled by the number of additions, not of blocks."""
    torch.manual_seed(0)
    model = GPT(GPTConfig(**{**SIZES, "dim": 64, "n_layer": 8, "n_unique": 1}))
    assert float(model.blocks[0].ffn.down.weight.std()) == pytest.approx(0.02 / 4, rel=0.05)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_unique": 0}, "n_unique is 0; it must be a whole number from 1 to 10,000"),
        ({"n_unique": 3}, "n_unique is 3; it must be from 1 to n_layer, which is 2"),
        (
            {"n_unique": 1, "attention": ["full", "multi_query"]},
            "attention is a pattern of 2 and n_unique is 1: a shared block can have only one kind; "
            "n_unique must be a multiple of 2",
        ),
        ({"n_layer": 4, "n_unique": 3, "ffn": ["gelu", "relu"]}, "ffn is a pattern of 2 and n_unique is 3"),
    ],
)
def test_blocks_that_cannot_be_shared_so_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(CallError) as refused:
        GPTConfig(**{**SIZES, **changes})
    assert message in str(refused.value)


@pytest.mark.parametrize("residual", ["none", "post", "deepnorm", "spherical"])
def test_an_update_is_scaled_only_where_there_is_one(residual: str) -> None:
    build({"residual": residual, "layer_drop": {"kind": "constant", "rate": 0.3}})
    with pytest.raises(CallError, match=f"layer_drop linear scales what .* with residual {residual} it adds nothing"):
        build({"residual": residual, "layer_drop": {"kind": "linear", "rate": 0.3}})
