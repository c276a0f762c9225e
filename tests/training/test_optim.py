"""AdamW's groups and the learning rate over the steps."""

import math
from typing import Any

import pytest
import torch

from lightning_gpt.data.batches import Batch
from lightning_gpt.data.mark import Mark
from lightning_gpt.errors import CallError
from lightning_gpt.models import GPT, GPTConfig
from lightning_gpt.training.module import GPTModule
from lightning_gpt.training.optim import Optimization, adamw, optimizer, schedule


def test_matrices_decay_and_nothing_else_does() -> None:
    model = GPT(GPTConfig(n_layer=2, n_head=2, dim=16, block_size=8, vocab_size=40))
    decaying, others = adamw(model, weight_decay=0.3).param_groups
    assert decaying["weight_decay"] == 0.3
    assert others["weight_decay"] == 0.0
    names = {parameter: name for name, parameter in model.named_parameters()}
    assert all(parameter.ndim >= 2 for parameter in decaying["params"])
    assert all(names[parameter].endswith("bias") or "norm" in names[parameter] for parameter in others["params"])
    assert len(decaying["params"]) + len(others["params"]) == len(names), "a tied matrix must be there once"


def test_fused_steps_are_those_of_the_formula() -> None:
    """Kingma & Ba 2015 (1412.6980), algorithm 1, with the decoupled decay of 1711.05101, in float64 by hand."""
    weight = torch.nn.Parameter(torch.tensor([[1.0, -2.0], [0.5, 3.0]], dtype=torch.float64))
    model = torch.nn.Module()
    model.weight = weight
    optimizer = adamw(model, lr=0.01, weight_decay=0.1, betas=(0.9, 0.95))
    expected = weight.detach().clone()
    m, v = torch.zeros_like(expected), torch.zeros_like(expected)
    for step in range(1, 6):
        gradient = torch.full_like(expected, float(step)) * expected.sign()
        weight.grad = gradient.clone()
        optimizer.step()
        m, v = 0.9 * m + 0.1 * gradient, 0.95 * v + 0.05 * gradient**2
        expected -= 0.01 * 0.1 * expected
        expected -= 0.01 * (m / (1 - 0.9**step)) / ((v / (1 - 0.95**step)).sqrt() + 1e-8)
    torch.testing.assert_close(weight.detach(), expected, atol=1e-12, rtol=0)


@pytest.mark.parametrize("kind", ["cosine", "linear", "constant"])
def test_warmup_is_linear_over_its_share_and_peaks_at_lr(kind: str) -> None:
    optimization = Optimization(schedule=kind, warmup=0.05)  # type: ignore[arg-type]
    factors = [optimization.lr_factor(step, 200) for step in range(200)]
    assert factors[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert max(factors) == 1.0
    assert factors[10] == 1.0


def test_decays_end_where_they_should() -> None:
    def factor(kind: str, step: int) -> float:
        return Optimization(schedule=kind, warmup=0.0, final_lr=0.1).lr_factor(step, 101)  # type: ignore[arg-type]

    assert factor("cosine", 50) == pytest.approx(0.1 + 0.9 * (1 + math.cos(math.pi / 2)) / 2)
    assert factor("linear", 50) == pytest.approx(0.55)
    assert factor("constant", 100) == 1.0
    assert factor("cosine", 100) == pytest.approx(0.1)
    assert factor("linear", 100) == pytest.approx(0.1)
    cosine = [factor("cosine", step) for step in range(101)]
    assert cosine == sorted(cosine, reverse=True)


@pytest.mark.parametrize(("warmup", "steps", "expected"), [(0.07, 100, 7), (0.28, 10_000, 2800), (0.1, 15, 2)])
def test_a_share_of_the_steps_is_the_number_worked_out_by_hand(warmup: float, steps: int, expected: int) -> None:
    factors = [Optimization(warmup=warmup).lr_factor(step, steps) for step in range(expected + 1)]
    assert factors.index(1.0) == expected - 1


@pytest.mark.parametrize(
    "options", [{"schedule": "linear"}, {"schedule": "cosine"}, {"schedule": "wsd", "stable": 0.0}]
)
def test_a_decay_of_one_step_ends_where_a_longer_one_does(options: dict[str, Any]) -> None:
    short = Optimization(warmup=0.9, final_lr=0.2, **options)
    assert [short.lr_factor(step, 10) for step in (7, 8, 9)] == pytest.approx([8 / 9, 1.0, 0.2])
    assert Optimization(warmup=0.0, **options).lr_factor(0, 1) == 1.0, "a run of one step has its rate"


def test_schedule_moves_the_optimizer() -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=2.0)
    rates = schedule(optimizer, Optimization(lr=2.0, warmup=0.5, schedule="constant"), total_steps=4)
    seen = []
    for _ in range(4):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        rates.step()
    assert seen == [1.0, 2.0, 2.0, 2.0]


def test_z_loss_is_trained_on_and_not_validated() -> None:
    """``CE + c · log²Z`` of the logits, Chowdhery et al. 2022 (2204.02311), section 5, in float64."""
    module = GPTModule(
        Optimization(z_loss=0.01), n_layer=1, n_head=2, dim=16, block_size=8, vocab_size=40, dropout=0.0
    ).double()
    ids = torch.randint(40, (3, 9), generator=torch.Generator().manual_seed(0))
    batch = Batch(ids=ids[:, :-1], targets=ids[:, 1:], mark=Mark({"rows": 3}))
    logits = module.model(batch["ids"])
    entropy = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch["targets"].flatten())
    expected = entropy + 0.01 * logits.logsumexp(dim=-1).square().mean()
    torch.testing.assert_close(module.training_step(batch, 0), expected, atol=1e-10, rtol=0)
    module.validation_step(batch, 0)
    assert float(module.eval_loss.compute()) == pytest.approx(float(entropy), abs=1e-6)


@pytest.mark.parametrize(
    "wrong",
    [
        {"lr": 0.0},
        {"lr": math.nan},
        {"weight_decay": -1.0},
        {"warmup": 1.0},
        {"betas": (0.9, 1.0)},
        {"final_lr": 2},
        {"stable": 1.1},
        {"z_loss": -1e-4},
        {"z_loss": math.nan},
        {"batch_warmup": 1.0},
    ],
)
def test_wrong_values_are_refused(wrong: dict) -> None:
    with pytest.raises(CallError, match=next(iter(wrong))):
        Optimization(**wrong)


def test_adamw_is_fused_where_its_kernels_are() -> None:
    for device, expected in (("cpu", True), ("meta", False)):
        with torch.device(device):
            model = GPT(GPTConfig(n_layer=1, n_head=1, dim=8, block_size=4, vocab_size=5))
        assert optimizer(model, Optimization()).defaults["fused"] is expected
