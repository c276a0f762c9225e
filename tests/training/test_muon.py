"""Muon: orthogonal updates of hidden matrices, AdamW for the rest, as one optimizer."""

import copy
import math
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from lightning_gpt.errors import CallError
from lightning_gpt.models import GPT, GPTConfig, SingleHeadConfig, SingleHeadModel
from lightning_gpt.models.memory.gpt import gpt_with
from lightning_gpt.training.muon import Muon, MuonOptions, hidden_matrices, orthogonalised
from lightning_gpt.training.mup import MuP, rescale
from lightning_gpt.training.optim import Optimization, adamw, optimizer, schedule

CONFIG = GPTConfig(n_layer=2, n_head=2, dim=16, block_size=8, vocab_size=40)


def by_singular_values(matrix: Tensor, steps: int) -> Tensor:
    """``U p(Σ) Vᵀ`` in float64: the iteration acts on singular values, and on nothing else."""
    u, sigma, vt = torch.linalg.svd(matrix.double(), full_matrices=False)
    sigma = sigma / sigma.square().sum().sqrt()
    for _ in range(steps):
        sigma = 3.4445 * sigma - 4.7750 * sigma**3 + 2.0315 * sigma**5
    return u @ sigma.diag() @ vt


def polar_factor(matrix: Tensor) -> Tensor:
    u, _, vt = torch.linalg.svd(matrix.double(), full_matrices=False)
    return u @ vt


@pytest.mark.parametrize("shape", [(12, 12), (5, 20), (20, 5)])
def test_iteration_is_its_polynomial_of_the_singular_values(shape: tuple[int, int]) -> None:
    matrices = torch.randn(3, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = torch.stack([by_singular_values(matrix, 5) for matrix in matrices])
    torch.testing.assert_close(orthogonalised(matrices, 5), expected, atol=1e-10, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(24, 24), (8, 32), (32, 8)])
def test_singular_values_come_near_one(shape: tuple[int, int], dtype: torch.dtype) -> None:
    """Up to the accuracy of the iteration, the result is ``U Vᵀ``."""
    matrices = torch.randn(4, *shape, generator=torch.Generator().manual_seed(1))
    result = orthogonalised(matrices.to(dtype), 5).double()
    for matrix, made in zip(matrices, result, strict=True):
        exact = polar_factor(matrix)
        worst = torch.linalg.svdvals(made - exact).max()
        assert float(worst) < 0.36
        assert float((made * exact).sum() / (made.norm() * exact.norm())) > 0.97


@pytest.mark.parametrize("nesterov", [True, False])
def test_step_is_the_formula(nesterov: bool) -> None:
    """Two matrices in one parameter, tall and square, beside a vector of AdamW's; float64, five steps by hand."""
    generator = torch.Generator().manual_seed(2)
    weight = torch.nn.Parameter(torch.randn(9, 3, dtype=torch.float64, generator=generator))
    vector = torch.nn.Module()
    vector.bias = torch.nn.Parameter(torch.randn(4, dtype=torch.float64, generator=generator))
    options = MuonOptions(lr=0.02, momentum=0.9, nesterov=nesterov, weight_decay=0.3)
    ours = Muon({(6, 3): [weight]}, options, adamw(vector, lr=0.01))
    alone = copy.deepcopy(vector)
    theirs = adamw(alone, lr=0.01)
    expected, mean = weight.detach().clone(), torch.zeros_like(weight)
    for _ in range(5):
        gradient = torch.randn(9, 3, dtype=torch.float64, generator=generator)
        weight.grad = gradient.clone()
        vector.bias.grad = torch.randn(4, dtype=torch.float64, generator=generator)
        alone.bias.grad = vector.bias.grad.clone()
        ours.step()
        theirs.step()
        mean = 0.9 * mean + 0.1 * gradient
        direction = 0.9 * mean + 0.1 * gradient if nesterov else mean
        expected *= 1 - 0.02 * 0.3
        expected[:6] -= 0.02 * math.sqrt(2) * by_singular_values(direction[:6], 5)
        expected[6:] -= 0.02 * by_singular_values(direction[6:], 5)
    torch.testing.assert_close(weight.detach(), expected, atol=1e-10, rtol=0)
    assert torch.equal(vector.bias, alone.bias)


def test_which_matrices_are_hidden() -> None:
    model = GPT(CONFIG)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found = {rows: {names[id(p)] for p in members} for rows, members in hidden_matrices(model).items()}
    of_blocks = {f"blocks.{i}.{part}.weight" for i in range(2) for part in ("attention.w_o", "ffn.down")}
    assert found == {
        (16, 16, 16): {"blocks.0.attention.qkv.weight", "blocks.1.attention.qkv.weight"},
        (): of_blocks | {f"blocks.{i}.ffn.up.weight" for i in range(2)},
    }


def test_fused_products_of_variants_are_taken_apart() -> None:
    model = GPT(
        GPTConfig(
            n_layer=1,
            n_head=4,
            dim=16,
            block_size=8,
            vocab_size=40,
            tie_embeddings=False,
            attention={"kind": "grouped", "n_kv_head": 2},
            ffn={"kind": "swiglu", "hidden": 24},
            position="t5",
        )
    )
    assert set(hidden_matrices(model)) == {(16, 8, 8), (24, 24), ()}
    assert all(parameter is not model.unembedding for parameter in hidden_matrices(model)[()])
    single = SingleHeadModel(SingleHeadConfig(dim=8, vocab_size=40))
    assert len(hidden_matrices(single)[()]) == 4


def test_what_scores_experts_or_tokens_and_what_memory_starts_from_go_to_adamw() -> None:
    """An orthogonal update moves all scores by as much as the largest; a table has no product to be orthogonal in."""
    sizes = {**vars(CONFIG), "position": "none", "ffn": {"kind": "moe", "n_expert": 4}}
    routed = GPT(GPTConfig(**{**sizes, "token_routing": {"kind": "mixture_of_depths", "every": 1}}))
    remembering = gpt_with({"kind": "tokens", "n_memory": 2}, GPTConfig(**sizes))
    for model, theirs in ((routed, "router.score.weight"), (remembering, "memory.initial")):
        names = {id(parameter): name for name, parameter in model.named_parameters()}
        groups = optimizer(model, Optimization(optimizer="muon")).param_groups
        by_adamw = {names[id(p)] for group in groups if "rows" not in group for p in group["params"]}
        by_muon = {names[id(p)] for group in groups if "rows" in group for p in group["params"]}
        for suffix in (theirs, "ffn.router.weight"):
            assert any(name.endswith(suffix) for name in by_adamw)
            assert not any(name.endswith(suffix) for name in by_muon)
        assert any(name.endswith("ffn.experts.up") for name in by_muon)
        assert by_adamw | by_muon == set(names.values())


def scores_moved(width: int) -> float:
    """RMS of ``dW x`` of a mixture's router after one step under Muon and μP, x the tokens that it was trained on."""
    torch.manual_seed(0)
    config = GPTConfig(
        n_layer=1, n_head=width // 32, dim=width, block_size=32, vocab_size=128, ffn={"kind": "moe", "hidden": 32}
    )
    model, mup = GPT(config), MuP(base_dim=64)
    rescale(model, mup)
    router = model.blocks[0].ffn.router.weight
    before, ids = router.detach().clone(), torch.randint(128, (4, 33))
    training = optimizer(model, Optimization(optimizer="muon", lr=0.01, mup=mup))
    with model.record("blocks.0.ffn_norm") as trace:
        model.loss(ids[:, :-1], ids[:, 1:]).backward()
    training.step()
    return float((trace["blocks.0.ffn_norm"].detach() @ (router.detach() - before).T).square().mean().sqrt())


def test_a_routers_step_does_not_grow_with_the_width_under_mup() -> None:
    narrow, *wider = map(scores_moved, (64, 256, 1024))
    assert narrow > 0
    assert max(wider) < 1.2 * narrow


@pytest.fixture
def mesh(tmp_path: Path) -> Iterator[DeviceMesh]:
    """A mesh of this process alone."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


def test_sharded_matrices_are_refused_in_one_line(mesh: DeviceMesh) -> None:
    """No process holds a whole matrix, and half of one made orthogonal is not half of the whole one made orthogonal."""
    model = fully_shard(GPT(CONFIG), mesh=mesh)
    assert isinstance(model, GPT)
    assert all(isinstance(parameter, DTensor) for parameter in model.parameters())
    with pytest.raises(CallError) as refused:
        optimizer(model, Optimization(optimizer="muon"))
    assert str(refused.value) == (
        "optimizer muon needs whole matrices and this strategy shards them: divide the model by --parallel.shard "
        "instead, or use strategy ddp, or optimizer adamw"
    )
    optimizer(model, Optimization(optimizer="adamw"))


def test_every_parameter_is_trained_once_and_the_schedule_moves_all() -> None:
    model = GPT(CONFIG)
    optimization = Optimization(optimizer="muon", lr=1e-3, muon=MuonOptions(lr=0.05), warmup=0.5, schedule="constant")
    made = optimizer(model, optimization)
    trained = [id(p) for group in made.param_groups for p in group["params"]]
    assert sorted(trained) == sorted(id(p) for p in model.parameters())
    schedule(made, optimization, total_steps=4)
    assert {group["lr"] for group in made.param_groups} == {0.5e-3, 0.025}
    assert made.param_groups[0]["lr"] == 0.5e-3, "the first group's is what is logged as train/lr"


def test_a_loaded_state_goes_on_the_same() -> None:
    def train(model: GPT, made: torch.optim.Optimizer, steps: range) -> None:
        for step in steps:
            ids = torch.randint(40, (2, 9), generator=torch.Generator().manual_seed(step))
            made.zero_grad()
            model.loss(ids[:, :-1], ids[:, 1:]).backward()
            made.step()

    optimization = Optimization(optimizer="muon")
    model = GPT(CONFIG)
    made = optimizer(model, optimization)
    train(model, made, range(3))
    other = copy.deepcopy(model)
    again = optimizer(other, optimization)
    again.load_state_dict(copy.deepcopy(made.state_dict()))
    train(model, made, range(3, 6))
    train(other, again, range(3, 6))
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))


def test_without_a_gradient_nothing_moves() -> None:
    model = GPT(CONFIG)
    made = optimizer(model, Optimization(optimizer="muon", muon=MuonOptions(weight_decay=0.1)))
    before = copy.deepcopy(model.state_dict())
    made.step()
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    "wrong", [{"lr": 0.0}, {"momentum": 1.0}, {"newton_schulz_steps": 0}, {"weight_decay": -0.1}, {"lr": math.nan}]
)
def test_wrong_options_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(CallError, match=f"muon.{next(iter(wrong))} is"):
        MuonOptions(**wrong)  # type: ignore[arg-type]
