"""The sizes of a layout, the places of its processes, and what is refused before anything starts."""

from typing import Any

import pytest
import torch
from torch import nn

from lightning_gpt.errors import CallError
from lightning_gpt.models import GPT, GPTConfig, LanguageModel, SingleHeadConfig, SingleHeadModel
from lightning_gpt.models.memory.gpt import gpt_with
from lightning_gpt.parallel.layout import AXES, Layout
from lightning_gpt.parallel.strategy import MeshStrategy, strategy_for
from lightning_gpt.parallel.suited import require_suited

SIZES: dict[str, Any] = {"n_layer": 2, "n_head": 4, "dim": 16, "block_size": 12, "vocab_size": 17}


def test_the_data_axis_takes_the_devices_that_are_left() -> None:
    assert Layout(tensor=2).on(8).data == 4
    assert Layout(data=2, shard=3).on(6) == Layout(data=2, shard=3)
    assert not Layout().is_chosen
    assert all(Layout(**{axis: 2}).is_chosen for axis in AXES)
    assert not Layout(data=1).is_chosen


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"micro_batches": 3}, "parallel.micro_batches is 3, which changes nothing while parallel.pipeline is 1"),
        (
            {"schedule": "zero_bubble"},
            "parallel.schedule is zero_bubble, which changes nothing while parallel.pipeline",
        ),
        ({"offload": True, "tensor": 2}, "parallel.offload is true, which changes nothing while parallel.shard is 1"),
        ({"reshard": False}, "parallel.reshard is false, which changes nothing while parallel.shard is 1"),
    ],
)
def test_options_of_an_axis_with_one_device_are_refused(options: dict[str, Any], line: str) -> None:
    with pytest.raises(CallError) as refused:
        Layout(**options).refuse_unused()
    assert line in str(refused.value)
    Layout(**{**options, "pipeline": 2, "shard": 2}).refuse_unused()


@pytest.mark.parametrize(
    ("layout", "devices", "line"),
    [
        (
            Layout(tensor=2),
            3,
            "parallel (tensor 2) needs a multiple of 2 devices, but there are 3; for 3: data 3",
        ),
        (
            Layout(data=2, shard=2),
            8,
            "parallel (data 2 × shard 2) needs 4 devices, but there are 8; for 8: data 4 × shard 2; data 8",
        ),
        (Layout(data=1, shard=4), 2, "parallel (shard 4) needs 4 devices, but there are 2; for 2: shard 2; data 2"),
        (Layout(data=1), 2, "parallel (1 device) needs 1 device, but there are 2; for 2: data 2"),
    ],
)
def test_a_product_that_is_not_the_number_of_devices(layout: Layout, devices: int, line: str) -> None:
    with pytest.raises(CallError) as refused:
        layout.on(devices)
    assert str(refused.value) == line


def test_processes_that_share_matrices_read_the_same_rows() -> None:
    layout = Layout(data=2, shard=2, tensor=2)
    ranks = [layout.data_rank(rank) for rank in range(8)]
    assert ranks == [0, 0, 1, 1, 2, 2, 3, 3]
    assert layout.data_size == 4
    places = [tuple(layout.coordinates(rank).values()) for rank in range(8)]
    assert len(set(places)) == 8
    assert layout.coordinates(5) | {"tensor": 0} == layout.coordinates(4)


def test_a_layout_may_wait_for_its_devices_only() -> None:
    with pytest.raises(ValueError, match="not known before the number of devices"):
        Layout(tensor=2).size("data")


def gpt(**changes: Any) -> GPT:
    return GPT(GPTConfig(**{**SIZES, **changes}))


def with_more() -> GPT:
    """Attention as a subclass may have it, with a parameter that the description it inherits does not name."""
    model = gpt()
    model.block_views()[0].mixer.more = nn.Parameter(torch.ones(3))
    return model


@pytest.mark.parametrize(
    ("model", "layout", "compiles", "line"),
    [
        (
            lambda: gpt(),
            Layout(data=1, tensor=3),
            False,
            "parallel.tensor 3 does not divide n_head 4 of layer 0: attention full: use tensor 1, 2 or 4",
        ),
        (
            lambda: gpt(attention=["full", {"kind": "grouped", "n_kv_head": 2}]),
            Layout(data=1, tensor=4),
            False,
            "parallel.tensor 4 does not divide n_kv_head 2 of layer 1: attention grouped (n_kv_head 2): "
            "use tensor 1 or 2",
        ),
        (
            lambda: gpt(ffn={"kind": "moe", "hidden": 9}),
            Layout(data=1, tensor=2),
            False,
            "parallel.tensor 2 does not divide hidden 9 of layer 0: ffn moe (hidden 9): use tensor 1, 3 or 9",
        ),
        (
            lambda: gpt(attention="delta_net"),
            Layout(data=1, tensor=2),
            False,
            "layer 0: attention delta_net cannot be divided over parallel.tensor 2: use parallel.shard, or another "
            "kind (attention full, grouped or window; ffn gelu, swiglu or moe)",
        ),
        (
            lambda: with_more(),
            Layout(data=1, tensor=2),
            False,
            "layer 0: attention full does not say how its parameter more is divided over parallel.tensor: "
            "its method cut must name it",
        ),
        (
            lambda: gpt(),
            Layout(data=1, tensor=2),
            True,
            "compile_blocks and parallel.tensor 2 cannot be combined: leave one of them out, or divide by "
            "parallel.shard",
        ),
        (
            lambda: gpt(block_size=9),
            Layout(data=1, tensor=2, sequence=True),
            False,
            "parallel.sequence needs a block_size that parallel.tensor 2 divides, and it is 9: use tensor 1, 3 or 9, "
            "or leave sequence out",
        ),
        (
            lambda: gpt(vocab_size=5),
            Layout(data=1, tensor=4),
            False,
            "parallel.tensor 4 leaves devices without a part of the vocabulary of 5",
        ),
        (
            lambda: SingleHeadModel(SingleHeadConfig(vocab_size=17)),
            Layout(data=1, tensor=2),
            False,
            "parallel.tensor 2 divides a GPT, and this is a SingleHeadModel: use parallel.shard",
        ),
        (
            lambda: gpt(n_layer=2),
            Layout(data=1, pipeline=2, schedule="zero_bubble"),
            True,
            "compile_blocks and parallel.schedule zero_bubble cannot be combined, as it divides the backward pass: use "
            "schedule 1f1b or interleaved",
        ),
        (
            lambda: gpt(block_size=12),
            Layout(data=1, context=2, tensor=4, sequence=True),
            False,
            "parallel.sequence divides the 6 tokens of a row that parallel.context 2 leaves a device over "
            "parallel.tensor 4, which does not divide them: leave sequence out, or choose a block_size that is a "
            "multiple of 16",
        ),
        (
            lambda: gpt(block_size=10),
            Layout(data=1, context=2),
            False,
            "rows of 10 tokens cannot be divided over 2 devices: parallel.context needs a block_size that is a "
            "multiple of 4",
        ),
        (
            lambda: gpt(ffn="moe"),
            Layout(data=1, expert=2),
            True,
            "compile_blocks and parallel.expert 2 cannot be combined, as the number of exchanged tokens changes with "
            "each batch: leave one of them out",
        ),
        (
            lambda: gpt(),
            Layout(data=1, expert=2),
            False,
            "parallel.expert 2 divides the experts of mixtures, and the model has none: use parallel.data or "
            "parallel.shard, or ffn moe",
        ),
        (
            lambda: gpt_with({"kind": "segment", "length": 6}, GPTConfig(**SIZES, position="rotary")),
            Layout(data=1, shard=2),
            False,
            "model memory and parallel (shard 2) cannot be combined: leave parallel out; every device then trains "
            "a copy of the model",
        ),
    ],
)
def test_a_model_that_a_layout_cannot_hold(model: Any, layout: Layout, compiles: bool, line: str) -> None:
    made: LanguageModel = model()
    with pytest.raises(CallError) as refused:
        require_suited(made, layout, compiles)
    assert str(refused.value) == line


def test_what_suits_is_not_refused() -> None:
    require_suited(gpt(), Layout(data=1, tensor=4))
    require_suited(gpt(), Layout(data=1, shard=2), compiles=True)
    require_suited(gpt(attention="delta_net"), Layout(data=1, shard=2))


@pytest.mark.parametrize(
    ("strategy", "precision", "line"),
    [
        ("ddp", "32-true", "trainer.strategy ddp and parallel (shard 2) cannot be combined: leave strategy out"),
        (
            "auto",
            "16-mixed",
            "trainer.precision 16-mixed and parallel (shard 2) cannot be combined: its gradient scaler works within "
            "one process; use bf16-mixed or 32-true",
        ),
    ],
)
def test_flags_of_the_trainer_that_do_not_go_with_a_layout(strategy: str, precision: str, line: str) -> None:
    with pytest.raises(CallError) as refused:
        strategy_for(Layout(shard=2), strategy, precision)
    assert str(refused.value) == line


def test_offloading_from_a_cpu_is_refused() -> None:
    strategy = MeshStrategy(Layout(shard=2, offload=True), parallel_devices=[torch.device("cpu")] * 2)
    with pytest.raises(
        CallError, match=r"parallel\.offload moves shards to the CPU's memory, and this run is on the CPU"
    ):
        strategy.meet(2)
