"""Memory and parameters of a plan, held against what real trainings allocate."""

import weakref
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks.memory import missing
from benchmarks.plan_errors import GridCell, in_fresh_process, planned
from lightning_gpt.models import GPT, GPTConfig, SingleHeadConfig, SingleHeadModel
from lightning_gpt.models.base import LanguageModel
from lightning_gpt.models.memory.gpt import gpt_with
from lightning_gpt.parallel.layout import Layout
from lightning_gpt.parallel.stages import layers_of_process
from lightning_gpt.planning.depth import shallow
from lightning_gpt.planning.memory import in_flight, rank_memory
from lightning_gpt.planning.tracing import cache_bytes, key_bytes, trace
from lightning_gpt.planning.training import Training
from lightning_gpt.planning.weights import by_component, weights_of, weights_of_stage
from lightning_gpt.training.optim import Optimization, optimizer

ROWS, TIME, VOCABULARY = 4, 64, 512
SIZES: dict[str, Any] = {"n_layer": 3, "n_head": 4, "dim": 64, "block_size": TIME, "vocab_size": VOCABULARY}
LLAMA = {"norm": "rms", "position": "rotary", "ffn": "swiglu", "bias": False, "tie_embeddings": False}
MODELS: dict[str, dict[str, Any]] = {
    "gpt2": {},
    "dropout": {"dropout": 0.1},
    "formula": {"attention_backend": "manual"},
    "llama": {**LLAMA, "attention": {"kind": "grouped", "n_kv_head": 2}},
    "block": {"checkpointing": "block"},
    "attention": {"checkpointing": "attention"},
    "mixture": {"ffn": {"kind": "moe", "n_expert": 4, "top_k": 4}},  # every expert has as many tokens as planned
    "gated": {"ffn": {"kind": "moe", "n_expert": 2, "top_k": 2, "n_shared": 1, "shared_gate": True, "hidden": 64}},
    "multiplied": {"residual": "multiplied", "logit_divisor": 2.0, "embedding_scale": 3.0},
    "shared": {"n_unique": 1},
    "canon": {"convolution": "canon"},
    "pattern": {"n_layer": 8, "attention": [{"kind": "window", "window": 16}, "full"], "position": "rotary"},
    "deep": {"n_layer": 8, "checkpointing": "block"},
    "first values": {"n_layer": 6, "attention": "value_residual"},
    "outputs": {"residual": "attention_residuals", "n_layer": 4},
    "copies": {"residual": "constrained_hyper_connections", "n_layer": 4},
    "routed": {"n_layer": 10, "token_routing": {"kind": "mixture_of_depths", "capacity": 0.25}},
}


class Alive(TorchDispatchMode):
    """The most bytes of arrays alive at once, of real tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.alive = self.most = 0
        self._known: weakref.WeakSet[Any] = weakref.WeakSet()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor) and tensor.untyped_storage() not in self._known:
                storage = tensor.untyped_storage()
                self._known.add(storage)
                weakref.finalize(storage, self._free, storage.nbytes())
                self.alive += storage.nbytes()
                self.most = max(self.most, self.alive)
        return result

    def _free(self, size: int) -> None:
        self.alive -= size


def model_of(name: str) -> LanguageModel:
    return GPT(GPTConfig(**{**SIZES, **MODELS[name]}))


def on_meta(make: Any) -> Any:
    with torch.device("meta"):
        return make()


def training_of(model: LanguageModel, **more: Any) -> Training:
    return Training(**{"model": model, "precision": "32-true", "device": "cpu", "rows": ROWS, "time": TIME} | more)


def allocated(make: Any, precision: str, accumulate: int, by: Optimization) -> int:
    """The most that three steps of training hold at once, in the order of Lightning's loop."""
    torch.manual_seed(0)
    with Alive() as alive:
        model = make().train()
        steps = optimizer(model, by)
        ids = torch.randint(VOCABULARY, (ROWS, TIME + 1))
        for _ in range(3):
            for number in range(accumulate):
                with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bf16-mixed"):
                    loss = model.loss(ids[:, :-1], ids[:, 1:])
                if number == 0:
                    steps.zero_grad()
                loss.backward()
            steps.step()
    return alive.most


@pytest.mark.parametrize("name", MODELS)
def test_the_peak_is_what_a_training_allocates(name: str) -> None:
    plan = rank_memory(training_of(on_meta(lambda: model_of(name))), Layout(data=1)).total
    assert plan == pytest.approx(allocated(lambda: model_of(name), "32-true", 1, Optimization()), rel=0.03)


@pytest.mark.parametrize(
    ("name", "precision", "accumulate", "by"),
    [
        ("gpt2", "bf16-mixed", 1, Optimization()),
        ("block", "bf16-mixed", 1, Optimization()),
        ("llama", "bf16-mixed", 1, Optimization()),
        ("gpt2", "32-true", 3, Optimization()),
        ("deep", "32-true", 2, Optimization()),
        ("llama", "32-true", 1, Optimization(optimizer="muon")),
    ],
)
def test_precision_accumulation_and_muon(name: str, precision: str, accumulate: int, by: Optimization) -> None:
    training = training_of(
        on_meta(lambda: model_of(name)), precision=precision, accumulate=accumulate, optimizer=by.optimizer
    )
    plan = rank_memory(training, Layout(data=1)).total
    assert plan == pytest.approx(allocated(lambda: model_of(name), precision, accumulate, by), rel=0.1)


@pytest.mark.skipif(missing("cpu") is not None, reason="peaks of a process are read from Linux's /proc")
def test_the_peak_is_that_of_a_process() -> None:
    """What is allocated is counted above, for every way; the whole grid is ``python -m benchmarks.plan_errors``."""
    cell = GridCell(4, 256, "block", "llama")
    assert planned(cell) == pytest.approx(in_fresh_process(cell), rel=0.15)


def test_a_model_of_one_head_and_one_with_memory_are_planned() -> None:
    for make in (
        lambda: SingleHeadModel(SingleHeadConfig(dim=32, block_size=TIME, vocab_size=VOCABULARY)),
        lambda: gpt_with({"kind": "segment", "length": 16}, GPTConfig(**{**SIZES, "position": "rotary"})),
    ):
        plan = rank_memory(training_of(on_meta(make)), Layout(data=1)).total
        assert plan == pytest.approx(allocated(make, "32-true", 1, Optimization()), rel=0.1)


# ---- what stands for what


@pytest.mark.parametrize("name", MODELS)
def test_parameters_are_exact(name: str) -> None:
    model, weights = model_of(name), weights_of(on_meta(lambda: model_of(name)))
    assert sum(weight.numel for weight in weights) == sum(parameter.numel() for parameter in model.parameters())
    components = by_component(weights)
    assert components["attention"] == sum(
        parameter.numel() for parameter in {p for view in model.block_views() for p in view.mixer.parameters()}
    )
    assert ("experts" in components) == (name in ("mixture", "gated"))


def test_a_mixture_divides_by_experts_and_its_matrices_by_the_tensor_axis() -> None:
    weights = weights_of(on_meta(lambda: model_of("mixture")))
    expert = next(weight for weight in weights if weight.is_of_experts)
    assert expert.on_rank(Layout(data=1, expert=2, tensor=2)) == expert.numel / 4
    norm = next(weight for weight in weights if weight.component == "norms and residuals")
    assert norm.on_rank(Layout(data=1, expert=2, tensor=2)) == norm.numel


@pytest.mark.parametrize("name", ["pattern", "deep", "first values", "routed"])
def test_layers_of_one_kind_stand_for_each_other(name: str) -> None:
    """Only a few of a deep model's layers are traced; with all of them traced nothing changes."""
    model = on_meta(lambda: model_of(name))
    config, places = shallow(model.config)
    assert config.n_layer < model.config.n_layer == len(places)
    few, shares = trace(model, 2, TIME, "32-true"), []
    for layer in few.layers:
        shares.append(sum(layer.kept.values()))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lightning_gpt.planning.tracing.shallow", lambda config: (config, []))
        every = trace(model, 2, TIME, "32-true")
    assert shares == [sum(layer.kept.values()) for layer in every.layers]
    assert few.kept == every.kept


@pytest.mark.parametrize("name", ["gpt2", "llama", "block", "formula"])
def test_rows_add_up(name: str) -> None:
    training = training_of(on_meta(lambda: model_of(name)))
    made, traced = training.trace(7, TIME), trace(training.model, 7, TIME, "32-true")
    assert made.kept == traced.kept
    assert [layer.backward for layer in made.layers] == [layer.backward for layer in traced.layers]


def test_a_gpu_keeps_less_of_an_rms_norm() -> None:
    model = on_meta(lambda: model_of("llama"))
    stream = ROWS * TIME * SIZES["dim"] * 4
    cpu, gpu = (trace(model, ROWS, TIME, "32-true", device=device).kept for device in ("cpu", "cuda"))
    assert cpu - gpu == pytest.approx((2 * SIZES["n_layer"] + 1) * stream, rel=0.01)


def test_a_gpu_attends_in_one_kernel() -> None:
    """On a CPU the backward pass in bf16 makes a block's scores and sums in fp32."""
    model = on_meta(lambda: model_of("gpt2"))
    cpu, gpu = (trace(model, ROWS, TIME, "bf16-mixed", device=device).layers[0] for device in ("cpu", "cuda"))
    assert cpu.backward["gradients"] > 2 * gpu.backward["gradients"]


def test_the_cache_is_what_generation_keeps() -> None:
    model = model_of("llama")
    keys = 2 * 2 * (SIZES["dim"] // 4) * 4  # keys and values of two heads
    assert key_bytes(model, "32-true") == [keys] * SIZES["n_layer"]
    places = 8  # of each token, a whole number
    assert cache_bytes(model, 3, TIME, "32-true") == 3 * TIME * SIZES["n_layer"] * (keys + places)


# ---- layouts


def memory(name: str, layout: Layout, stage: int = 0, **more: Any) -> Any:
    return rank_memory(training_of(on_meta(lambda: model_of(name)), **more), layout, stage)


def test_sharding_divides_all_that_is_kept_of_weights() -> None:
    whole, part = memory("llama", Layout(data=1)), memory("llama", Layout(data=1, shard=4))
    assert (part.weights, part.gradients, part.optimizer) == (
        whole.weights / 4,
        whole.gradients / 4,
        whole.optimizer / 4,
    )
    assert part.gathered > 0
    assert whole.gathered == 0
    assert memory("llama", Layout(data=1, shard=4, reshard=False)).gathered > part.gathered


def test_offloading_moves_shards_to_the_memory_of_the_cpu() -> None:
    here = memory("llama", Layout(data=1, shard=4))
    away = memory("llama", Layout(data=1, shard=4, offload=True))
    assert away.host == here.weights + here.gradients + here.optimizer
    assert away.weights == away.gradients == away.optimizer == 0


def test_tensor_and_sequence_divide_activations() -> None:
    whole = memory("gpt2", Layout(data=1))
    tensor = memory("gpt2", Layout(data=1, tensor=4))
    both = memory("gpt2", Layout(data=1, tensor=4, sequence=True))
    assert whole.activations > tensor.activations > both.activations > whole.activations / 4
    assert tensor.weights < whole.weights / 2


def test_stages_hold_their_layers_and_the_micro_batches_in_flight() -> None:
    by_stage = [layers_of_process(10, Layout(data=1, pipeline=4), stage) for stage in range(4)]
    assert by_stage == [[0, 1], [2, 3, 4], [5, 6], [7, 8, 9]]
    by_device = [layers_of_process(8, Layout(data=1, pipeline=2, schedule="interleaved"), place) for place in (0, 1)]
    assert by_device == [[0, 1, 4, 5], [2, 3, 6, 7]]
    assert [in_flight(Layout(data=1, pipeline=4), stage) for stage in range(4)] == [4, 3, 2, 1]
    assert in_flight(Layout(data=1, pipeline=4, schedule="interleaved", micro_batches=16), 0) == 5.5
    assert in_flight(Layout(data=1, pipeline=4, schedule="interleaved", micro_batches=4), 0) == 4
    weights = weights_of(on_meta(lambda: model_of("gpt2")))
    ends = [weights_of_stage(weights, 3, Layout(data=1, pipeline=3), stage, True) for stage in range(3)]
    held = [sum(weight.component == "token embedding" for weight in stage) for stage in ends]
    assert held == [1, 0, 1]  # the tied head is a copy of it
    first, last = (memory("gpt2", Layout(data=1, pipeline=3), stage, rows=6) for stage in (0, 2))
    assert first.activations > last.activations
    assert first.head == 0 < last.head
