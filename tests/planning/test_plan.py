"""Devices, communication, time and the search: formulas by hand, and bytes counted in real processes."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_gpt.errors import CallError
from lightning_gpt.models import GPT, GPTConfig
from lightning_gpt.parallel.layout import Layout
from lightning_gpt.planning.communication import link_of, ring, traffic
from lightning_gpt.planning.devices import DeviceKind, device_named, devices_of, fitting_precisions, known_devices
from lightning_gpt.planning.memory import rank_memory
from lightning_gpt.planning.plan import Assumptions, plan
from lightning_gpt.planning.search import fastest, fewest, layouts
from lightning_gpt.planning.speed import bubble_share, optimal_tokens, stage_flops
from lightning_gpt.planning.training import Training

H100 = known_devices()["H100-SXM"]


def training(**more: Any) -> Training:
    sizes: dict[str, Any] = {"n_layer": 8, "n_head": 8, "dim": 512, "block_size": 256, "vocab_size": 4096}
    fields: dict[str, Any] = {"precision": "bf16-mixed", "device": "cuda", "rows": 2, "time": 256, "global_rows": 64}
    fields |= {name: more.pop(name) for name in list(more) if name in Training.__dataclass_fields__}
    with torch.device("meta"):
        return Training(model=GPT(GPTConfig(**{**sizes, **more})), **fields)


def small(memory_gib: float, **more: Any) -> DeviceKind:
    """A device with little memory."""
    return DeviceKind(
        **{
            "name": "small",
            "tflops": {"fp32": 1, "bf16": 2},
            "memory_gib": memory_gib,
            "memory_gb_s": 100,
            "link_gb_s": 10,
            "network_gb_s": 1,
            "node": 4,
        }
        | more
    )


# ---- devices


def test_every_device_of_the_table_is_whole() -> None:
    assert {"A100-40GB", "A100-80GB", "H100-SXM", "H100-PCIe", "H200", "B200", "L40S", "RTX-4090", "MI300X"} <= set(
        known_devices()
    )
    for device in known_devices().values():
        assert fitting_precisions(device)
        assert device.link_gb_s >= device.network_gb_s, device


def test_a_device_is_found_or_the_nearest_is_named(tmp_path: Path) -> None:
    assert device_named("h100-sxm", known_devices()) is H100
    with pytest.raises(CallError, match="no device is called 'h100'; did you mean H100-PCIe or H100-SXM"):
        device_named("h100", known_devices())
    with pytest.raises(CallError, match="known are A100-40GB"):
        device_named("abacus", known_devices())


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("x: {memory: 3}", "x: unknown key 'memory'; the keys are tflops"),
        ("x: {tflops: {fp32: 1}}", "x: memory_gib is missing"),
        (
            "x: {tflops: {}, memory_gib: 1, memory_gb_s: 1, link_gb_s: 1, network_gb_s: 1}",
            "x.tflops is empty; it must have one rate or more",
        ),
        ("x: 3", "x must be a name with a mapping"),
        (
            "x: {tflops: {fp8: 1}, memory_gib: 1, memory_gb_s: 1, link_gb_s: 1, network_gb_s: 1}",
            "x.tflops has 'fp8'; allowed: fp64, fp32, bf16, fp16",
        ),
        (
            "x: {tflops: {fp32: -1}, memory_gib: 1, memory_gb_s: 1, link_gb_s: 1, network_gb_s: 1}",
            "x.tflops.fp32 is -1; it must be above 0",
        ),
        (
            "x: {tflops: {fp32: 1}, memory_gib: -1, memory_gb_s: 1, link_gb_s: 1, network_gb_s: 1}",
            "x.memory_gib is -1; it must be a positive number",
        ),
        ("{}", "has no devices"),
    ],
)
def test_a_wrong_file_of_devices_is_one_line(text: str, said: str, tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    with pytest.raises(CallError) as error:
        devices_of(str(file))
    assert said in str(error.value)
    assert str(file) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_device_without_units_for_a_precision_is_refused() -> None:
    with pytest.raises(CallError, match="V100 has no bf16 units for precision bf16-mixed; allowed: 16-mixed, 32-true"):
        known_devices()["V100"].rate("bf16-mixed")


# ---- communication


def test_axes_use_the_links_that_they_cross() -> None:
    layout = Layout(data=2, shard=4, tensor=4)
    assert link_of(layout, "tensor", H100) == ("node", 450e9)
    assert link_of(layout, "shard", H100) == ("network", 100e9)  # two devices of the axis in each node, so two networks
    assert link_of(layout, "data", H100) == ("network", 50e9)


def test_bytes_of_each_axis_by_hand() -> None:
    run = training(tie_embeddings=False, bias=False, norm="rms", position="rotary")
    block, ends = 12 * 512**2 + 2 * 512, 2 * 4096 * 512 + 512
    stream = 2 * 256 * 512 * 2  # rows, tokens, width, bytes of bf16

    found = traffic(run, Layout(data=1, shard=4), H100)["shard"]
    micro_batches = 64 // 4 // 2
    assert found.sent == micro_batches * ring(4 * (8 * block * 3 + ends * 2), 4)

    found = traffic(run, Layout(data=1, tensor=4), H100)["tensor"]
    # two branches, forward and backward; both ends in fp32
    assert found.sent == 32 * 2 * ring((8 * 4 + 2 * 2) * stream, 4)
    sequence = traffic(run, Layout(data=1, tensor=4, sequence=True), H100)["tensor"]
    assert sequence.sent == found.sent + 32 * ring(2 * stream, 4)  # the embedding's sum is taken whole

    found = traffic(run, Layout(data=4, shard=2), H100)["data"]
    assert found.reduced == 4 * 2 * ring(4 * (8 * block + ends) / 2, 4)

    layout = Layout(data=1, pipeline=4, micro_batches=8)
    run = training(tie_embeddings=False, bias=False, norm="rms", position="rotary", rows=64)
    sent = [traffic(run, layout, H100, stage)["pipeline"].exchanged for stage in range(4)]
    assert sent == [8 * 8 * 256 * 512 * 4 * ends for ends in (1, 2, 2, 1)]  # eight rows of an fp32 stream

    found = traffic(run, Layout(data=1, context=4), H100)["context"]
    assert found.gathered == 32 * ring(2 * 256 * 8 * (2 * 512 * 2) * 2, 4)


def test_experts_send_each_choice_four_times() -> None:
    run = training(ffn={"kind": "moe", "n_expert": 8, "top_k": 2})
    found = traffic(run, Layout(data=1, expert=4), H100)["expert"]
    choices = 2 * 256 * 2 * 8
    assert found.exchanged == 64 // 4 // 2 * ring(4 * choices * 512 * 2, 4)


# ---- time


def test_the_bubble_of_each_schedule() -> None:
    layouts = [
        Layout(data=1, pipeline=4, schedule=schedule, micro_batches=12)
        for schedule in ("1f1b", "interleaved", "zero_bubble")
    ]
    assert [bubble_share(layout) for layout in layouts] == [3 / 12, 3 / 24, 3 / 36]


def test_a_pipeline_divides_each_batch_that_is_accumulated() -> None:
    run, layout = training(rows=8, accumulate=3, global_rows=None), Layout(data=1, pipeline=2)
    made = plan(run, layout, H100)
    assert (made.micro_batches, made.rows) == (3 * 4, 2)
    assert made.tokens == 3 * 8 * 256
    assert made.time.bubble == pytest.approx((made.time.products + made.time.exposed) / 4)
    once = plan(training(rows=8, global_rows=None), layout, H100)
    assert [stage.activations for stage in made.stages] == [stage.activations for stage in once.stages]


def test_a_pipeline_holds_whole_gradients_and_weights_until_its_batch_is_done() -> None:
    run = training(rows=8, global_rows=None)
    alone, divided = (rank_memory(run, Layout(data=1, pipeline=2, shard=shard)) for shard in (1, 2))
    assert alone.gradients == 2 * alone.weights, "those of before the batch, and those that it makes"
    assert divided.weights == alone.weights / 2
    assert divided.gradients == divided.weights + alone.weights
    assert divided.gathered == alone.weights / 2


def test_copies_under_ddp_have_buckets_and_sum_once_a_step() -> None:
    sizes = {"rows": 2, "accumulate": 8, "global_rows": None}
    run, laid_out = (training(copies_only=by_ddp, **sizes) for by_ddp in (True, False))
    memory, plain = (rank_memory(each, Layout(data=2)) for each in (run, laid_out))
    assert memory.gradients == 2 * plain.gradients
    sent = [traffic(each, Layout(data=2), H100)["data"].reduced for each in (run, laid_out)]
    assert sent[1] == 8 * sent[0]


def test_muon_makes_whole_matrices_orthogonal_on_every_device() -> None:
    options = {"tie_embeddings": False, "bias": False, "rows": 8, "global_rows": None}
    by_adamw, by_muon = (training(optimizer=name, **options) for name in ("adamw", "muon"))
    iteration = 8 * (4 * (4 * 512**3 + 2 * 512**3) + 2 * (4 * 512**2 * 2048 + 2 * 512**3))
    rate = H100.rate("bf16-mixed")
    hidden = 8 * 12 * 512**2
    for layout in (Layout(data=2), Layout(data=1, shard=2), Layout(data=1, tensor=2)):
        parts = 1 if layout.data == 2 else 2
        plain, made = (plan(run, layout, H100, Assumptions(share_of_peak=1.0)) for run in (by_adamw, by_muon))
        moved = 2 * 4 * hidden / parts / (H100.memory_gb_s * 1e9)
        assert made.time.optimizer - plain.time.optimizer == pytest.approx(5 * iteration / rate + moved)
    alone, divided = (rank_memory(by_muon, layout) for layout in (Layout(data=2), Layout(data=1, shard=2)))
    assert divided.optimizer == alone.optimizer / 2
    of_a_row = {**options, "rows": 1, "optimizer": "muon"}  # the optimizer's step is the peak

    def peak(precision: str, layout: Layout) -> float:
        return rank_memory(training(precision=precision, **of_a_row), layout).total

    assert peak("16-mixed", Layout(data=1)) - peak("bf16-mixed", Layout(data=1)) == 3 * 2 * hidden, "in fp32"
    assert peak("bf16-mixed", Layout(data=2)) - peak("bf16-mixed", Layout(data=1)) == 4 * hidden, "the moves"
    twice = training(optimizer="muon", newton_schulz_steps=10, **options)
    more = plan(twice, Layout(data=2), H100).time.optimizer - plan(by_muon, Layout(data=2), H100).time.optimizer
    assert more == pytest.approx(5 * iteration / rate / 0.5)


def test_recomputing_blocks_costs_their_forward_pass() -> None:
    plain, again = (stage_flops(training(checkpointing=mode), Layout(data=1), 0) for mode in ("none", "block"))
    run = training()
    blocks = sum(layer for layer, _ in run.layer_flops)
    assert plain == run.flops * 2 * 256
    assert again - plain == blocks * 2 * 256


def test_compute_optimal_tokens() -> None:
    """Of the paper's table 3: 67 billion parameters and 1.5 trillion tokens are optimal together, by approach 1."""
    assert optimal_tokens(67_000_000_000)["20 per parameter"] == pytest.approx(1.5e12, rel=0.15)
    n = 400_000_000
    fitted = optimal_tokens(n)["fitted loss"]

    def loss(parameters: float, tokens: float) -> float:
        return 1.69 + 406.4 / parameters**0.34 + 410.7 / tokens**0.28

    compute = n * fitted
    around = [loss(n * factor, compute / (n * factor)) for factor in (0.9, 0.99, 1.0, 1.01, 1.1)]
    assert min(around) == around[2], "with that many tokens no other size has a lower loss for the same compute"


def test_time_is_products_at_the_stated_share() -> None:
    run = training()
    one, half = (plan(run, Layout(data=1), H100, Assumptions(share_of_peak=share)) for share in (1.0, 0.5))
    assert one.time.products == run.flops * 64 * 256 / 989e12
    assert half.time.products == 2 * one.time.products
    assert one.time.total >= one.time.products


# ---- fits, and the search


def test_what_fits_is_decided_by_the_fullest_stage() -> None:
    made = plan(training(rows=64), Layout(data=1, pipeline=4, micro_batches=8), small(1))
    assert len(made.stages) == 4
    assert made.spare == made.usable - max(stage.total for stage in made.stages)
    assert made.fits == (made.spare >= 0)
    assert math.isclose(made.usable, 0.92 * 2**30)


def test_the_search_finds_the_fastest_that_fits() -> None:
    run = training(checkpointing="block")
    best, _ = fastest(run, H100, 8)
    assert best is not None
    assert best.fits
    # a device with little memory forces the model apart
    tight, closest = fastest(run, small(0.4), 8)
    assert tight is not None
    assert tight.fits
    assert (tight.layout.devices, tight.layout.data < 8) == (8, True)
    assert closest is not None
    none, closest = fastest(run, small(0.02), 8)
    assert none is None
    assert closest is not None
    assert closest.spare < 0


def test_a_searched_layout_takes_batches_that_fit_takes() -> None:
    run = training(rows=48, checkpointing="block")
    found = {layout.described(): (made.rows, layout) for made, layout in layouts(run, H100, 4, divide_rows=False)}
    assert {name: found[name][0] for name in ("data 4", "shard 2 × tensor 2")} == {
        "data 4": 16,
        "shard 2 × tensor 2": 32,
    }
    few = training(rows=2, checkpointing="block")
    piped = [made for made in layouts(few, H100, 4, divide_rows=False) if made[1].described() == "pipeline 2 × data 2"]
    batches = {(made.rows, made.accumulate, layout.micro_batches, made.micro_rows(layout)) for made, layout in piped}
    assert batches == {(32, 1, 16, 2), (32, 1, 4, 8)}, (
        "the share as one batch: in parts as asked for, or a few large ones"
    )
    assert {layout.data_size for _, layout in layouts(training(global_rows=6), H100, 4, divide_rows=False)} == {1, 2}


def test_what_needs_copies_of_the_model_gets_no_other_layout() -> None:
    run = training(checkpointing="block", copies_only=True)
    best, closest = fastest(run, small(0.4), 8)
    assert best is None
    assert closest is not None
    assert closest.layout.is_copies
    with pytest.raises(CallError, match="needs a copy of the model on every device, and shard 2 divides it"):
        plan(run, Layout(data=1, shard=2), H100)


def test_the_fewest_devices_that_are_enough() -> None:
    made = fewest(training(checkpointing="block"), small(0.4))
    assert made.fits
    assert made.layout.devices > 1
    best, _ = fastest(training(checkpointing="block"), small(0.4), made.layout.devices // 2)
    assert best is None
    with pytest.raises(CallError, match=r"does not fit 4,096 small: the closest lacks .* GiB"):
        fewest(training(), small(0.001))


@pytest.mark.parametrize(
    ("layout", "said"),
    [
        (Layout(data=1, tensor=3), "does not divide n_head 8"),
        (
            Layout(data=1, pipeline=16),
            "parallel.pipeline 16 with schedule 1f1b has 16 stages, but the model has 8 layers",
        ),
        (Layout(data=1, context=3), "parallel.context needs a block_size that is a multiple of 6"),
        (Layout(data=1, expert=2), "parallel.expert 2 divides the experts of mixtures, and the model has none"),
        (Layout(data=3), "data.global_batch is 64 rows, but a micro-batch has 6 (batch_size 2 × 3 processes)"),
        (Layout(data=1, pipeline=2), "data.batch_size 2 cannot be divided into 4 micro-batches"),
    ],
)
def test_a_layout_that_does_not_suit_is_one_line(layout: Layout, said: str) -> None:
    with pytest.raises(CallError) as error:
        plan(training(), layout, H100)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_a_plan_is_plain_data() -> None:
    made = plan(training(), Layout(data=1, shard=2, tensor=2), H100)
    data = json.loads(json.dumps(made.as_data()))
    assert data["memory"][0]["total"] == made.fullest.total
    assert data["traffic"]["shard"]["sent"] == made.traffic["shard"].sent
