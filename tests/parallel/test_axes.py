"""Pipeline, context and expert parallel against one process, in float64, and what they refuse."""

from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh

from lightning_gpt.errors import CallError
from lightning_gpt.models import GPTConfig, SingleHeadConfig, SingleHeadModel
from lightning_gpt.models.memory.gpt import gpt_with
from lightning_gpt.parallel.context import ContextParallel
from lightning_gpt.parallel.experts import divide_experts, require_experts
from lightning_gpt.parallel.layout import Layout
from lightning_gpt.parallel.stages import layers_of_stages, require_stages
from tests.parallel import axes
from tests.parallel.against_one import SIZES, model_of
from tests.parallel.world import result

TRAINED = [(size, name) for size, cases in axes.CASES.items() for name in cases if name != axes.DRAWN]


@pytest.mark.parametrize(("processes", "case"), TRAINED)
def test_each_step_is_that_of_one_process(processes: int, case: str) -> None:
    found = result(axes.__name__, processes, case)
    assert found.pop("learned") > 0.5, "a model that does not learn shows nothing"
    assert max(found.values()) < 1e-10, found


def test_processes_draw_differently_for_different_tokens_of_a_row() -> None:
    drawn = result(axes.__name__, 2, axes.DRAWN)
    assert len(set(drawn)) == len(drawn)


def test_the_losses_of_a_mixture_change_what_is_trained() -> None:
    """So that equality with one process shows that a pipeline and divided rows do not lose them."""
    quiet = {"kind": "moe", "n_expert": 4, "top_k": 2, "hidden": 24, "balance": "none", "z_loss": 0.0}
    heard, unheard = axes.one_process("moe"), axes.one_process("moe", ffn=quiet)
    assert heard.difference(unheard)["weights"] > 1e-3


DROPPED = {"layer_drop": {"kind": "constant", "rate": 0.1}}


@pytest.mark.parametrize(
    ("size", "schedule", "micro", "options", "said"),
    [
        (5, "1f1b", 8, {}, "parallel.pipeline 5 with schedule 1f1b has 5 stages, but the model has 4 layers: use "),
        (
            3,
            "interleaved",
            6,
            {},
            "use parallel.pipeline up to 2, schedule 1f1b or zero_bubble, or more layers",
        ),
        (2, "1f1b", 4, {"n_unique": 2}, "with n_unique 2 layers share blocks: leave n_unique out"),
        (2, "1f1b", 1, {}, "parallel.micro_batches is 1; it must be at least parallel.pipeline, which is 2"),
        (2, "interleaved", 5, {}, "and with schedule interleaved a multiple of it"),
        (2, "interleaved", 4, {"position": "t5"}, "share the table of position biases: use schedule 1f1b"),
        (2, "zero_bubble", 4, {"position": "t5"}, "share the table of position biases: use schedule 1f1b"),
        (2, "zero_bubble", 4, DROPPED, "layer_drop and parallel.schedule zero_bubble cannot be combined"),
        (2, "zero_bubble", 4, {"layout": {"shard": 2}}, "set parallel.reshard to false, or use schedule 1f1b"),
    ],
)
def test_a_pipeline_refuses(size: int, schedule: Any, micro: int, options: dict[str, Any], said: str) -> None:
    layout = Layout(pipeline=size, schedule=schedule, micro_batches=micro, **options.pop("layout", {}))
    with pytest.raises(CallError) as refused:
        require_stages(model_of("gpt2", **options), layout)
    assert said in str(refused.value)


def test_a_pipeline_refuses_models_without_a_stack_of_layers() -> None:
    remembering = gpt_with({"kind": "segment", "length": 8}, GPTConfig(**{**SIZES, "position": "rotary"}))
    for model in (remembering, SingleHeadModel(SingleHeadConfig(vocab_size=61))):
        with pytest.raises(CallError, match=r"needs parallel\.pipeline 1"):
            require_stages(model, Layout(pipeline=2))


def test_stages_are_as_even_as_possible() -> None:
    assert [len(layers) for layers in layers_of_stages(7, 3)] == [2, 2, 3]
    assert [layer for layers in layers_of_stages(7, 3) for layer in layers] == list(range(7))


class _Group:
    """Stands for a process group, of which a refusal needs the size alone."""

    def size(self) -> int:
        return 2

    def rank(self) -> int:
        return 0


@pytest.mark.parametrize(
    ("options", "part"),
    [
        ({"attention": "linear"}, "blocks.0.attention (LinearAttention)"),
        ({"attention": ["full", "delta_net"], "position": "none"}, "blocks.1.attention (GatedDeltaNet)"),
        ({"diversity": 0.1}, "diversity (TokenDiversity)"),
        ({"token_routing": {"kind": "mixture_of_depths", "capacity": 0.5}}, "blocks.1 (RoutedBlock)"),
        ({"ffn": {"kind": "moe", "capacity_factor": 1.5}}, "blocks.0.ffn (MixtureOfExperts)"),
        ({"layer_drop": {"kind": "constant", "rate": 0.1}}, "layer_drop cannot be combined"),
    ],
)
def test_divided_rows_refuse(options: dict[str, Any], part: str) -> None:
    with pytest.raises(CallError) as refused:
        ContextParallel(model_of("gpt2", **options), _Group())  # type: ignore[arg-type]
    assert part in str(refused.value)


def test_divided_rows_refuse_a_memory_and_rows_of_an_odd_length() -> None:
    remembering = gpt_with({"kind": "segment", "length": 8}, GPTConfig(**{**SIZES, "position": "rotary"}))
    with pytest.raises(CallError, match=r"the model \(MemoryGPT\) needs whole rows"):
        ContextParallel(remembering, _Group())  # type: ignore[arg-type]
    context = ContextParallel(model_of("gpt2"), _Group())  # type: ignore[arg-type]
    with pytest.raises(CallError, match="block_size that is a multiple of 4"):
        context.places(14, torch.device("cpu"))


def test_pieces_of_a_row_are_even() -> None:
    """Each process holds an early and a late piece, so that all see equally many earlier tokens."""
    places = ContextParallel(model_of("gpt2"), _Group()).places(16, torch.device("cpu"))  # type: ignore[arg-type]
    assert places.tolist() == [[0, 1, 2, 3, 12, 13, 14, 15], [4, 5, 6, 7, 8, 9, 10, 11]]
    assert places.sum(dim=1).unique().numel() == 1


def test_experts_refuse() -> None:
    with pytest.raises(CallError, match="it must divide the number of experts, n_expert 4: 1, 2, 4"):
        require_experts(model_of("moe"), 3)
    with pytest.raises(CallError, match="the model has none"):
        require_experts(model_of("gpt2"), 2)
    with pytest.raises(CallError, match=r"parallel\.expert and layer_drop cannot be combined"):
        require_experts(model_of("moe", layer_drop={"kind": "constant", "rate": 0.1}), 2)


def test_one_process_may_hold_all_experts() -> None:
    """An axis of one device changes nothing."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        alone, divided = model_of("moe"), model_of("moe")
        divide_experts(divided, init_device_mesh("cpu", (1,)))
        ids = torch.arange(32).view(2, 16)
        assert torch.equal(divided(ids), alone(ids))
    finally:
        dist.destroy_process_group()
