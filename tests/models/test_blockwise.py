"""Attention by blocks of queries: the formula in float64, and in bf16 no less exact than torch's fused kernel."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_gpt.models import GPT, GPTConfig
from lightning_gpt.models.attention import blockwise
from lightning_gpt.models.attention.blockwise import LONGEST, blockwise_attention
from lightning_gpt.models.attention.formula import attention_pattern, scaled_scores
from lightning_gpt.models.attention.mask import causal_mask
from lightning_gpt.models.record import record
from tests.models.helpers import random_ids

pytestmark = pytest.mark.cpu("attention by blocks is taken on a CPU")


def problem(heads: int, time: int, width: int, value_width: int, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """Queries, keys, values and the gradient of the output; large scores, so that rounding them would show."""
    chance = torch.Generator("cpu").manual_seed(heads + time + width)
    sizes = (3 * width**0.25, width), (1, width), (1, value_width), (1, value_width)
    return [(torch.randn(2, heads, time, n, generator=chance) * scale).to(dtype) for scale, n in sizes]


def outcome(attention: Any, q: Tensor, k: Tensor, v: Tensor, grad: Tensor) -> list[Tensor]:
    """The output and the gradients of q, k and v."""
    inputs = [x.clone().requires_grad_() for x in (q, k, v)]
    mixed = attention(*inputs)
    return [mixed.detach(), *torch.autograd.grad(mixed, inputs, grad)]


def formula(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return attention_pattern(scaled_scores(q, k), causal_mask(q.shape[-2])) @ v


def by_blocks(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return blockwise_attention(q, k, v, q.shape[-1] ** -0.5)


def fused(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v, is_causal=True)


@pytest.mark.parametrize("scores_at_once", [1, 2**20], ids=["a head at a time", "together"])
@pytest.mark.parametrize(
    ("heads", "time", "width", "value_width"), [(1, 2, 8, 8), (3, 64, 5, 7), (2, 65, 8, 8), (4, 200, 64, 32)]
)
def test_value_and_gradients_equal_the_formula(
    heads: int, time: int, width: int, value_width: int, scores_at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blockwise, "_SCORES", scores_at_once)
    given = problem(heads, time, width, value_width)
    for found, expected in zip(outcome(by_blocks, *given), outcome(formula, *given), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("heads", "time", "width"), [(1, 70, 8), (4, 64, 64), (2, 200, 64), (4, 256, 8), (1, 300, 64)])
def test_in_bf16_every_error_is_at_most_that_of_the_fused_kernel(heads: int, time: int, width: int) -> None:
    given = problem(heads, time, width, width, torch.bfloat16)
    exact = outcome(formula, *(x.double() for x in given))
    ours, theirs = outcome(by_blocks, *given), outcome(fused, *given)
    for a, b, expected in zip(ours, theirs, exact, strict=True):
        assert a.dtype == torch.bfloat16
        errors = [(x.double() - expected).square().mean().sqrt() for x in (a, b)]
        assert errors[0] <= errors[1]
        assert errors[0] < 4e-3 * expected.square().mean().sqrt()


def test_it_is_differentiable_once() -> None:
    q, k, v, _ = problem(1, 4, 3, 3)
    q.requires_grad_()
    with pytest.raises(RuntimeError, match="differentiable once"):
        torch.autograd.grad(by_blocks(q, k, v).sum(), q, create_graph=True)


class Operations(TorchDispatchMode):
    """The names of all operations inside the context."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.add(func.name())
        return func(*args, **(kwargs or {}))


FUSED = {f"aten::_scaled_dot_product_flash_attention_for_cpu{end}" for end in ("", "_backward")}
BY_BLOCKS = "aten::bmm.out"


def gpt(**changes: Any) -> GPT:
    torch.manual_seed(0)
    return GPT(GPTConfig(n_layer=2, n_head=2, dim=16, vocab_size=17, block_size=LONGEST + 1, **changes))


def step(model: GPT, time: int, bf16: bool = True) -> set[str]:
    """The operations of a training pass."""
    ids = random_ids(17, 2, time)
    with Operations() as seen:
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss = model.loss(ids, ids)
        loss.backward()
    return seen.names


@pytest.mark.parametrize(
    "changes", [{}, {"position": "rotary"}, {"attention": {"kind": "full", "n_kv_head": 1}, "qk_norm": "rms"}]
)
def test_a_model_in_bf16_uses_it(changes: dict[str, Any]) -> None:
    model, ids = gpt(**changes), random_ids(17, 2, 70)
    operations = step(model, 70)
    assert BY_BLOCKS in operations
    assert not FUSED & operations
    gradients = [parameter.grad for parameter in model.parameters()]
    model.zero_grad()
    model.loss(ids, ids).backward()
    for found, parameter in zip(gradients, model.parameters(), strict=True):
        assert (found - parameter.grad).norm() <= 0.05 * parameter.grad.norm()


def test_other_passes_use_the_fused_kernel_or_the_formula() -> None:
    assert step(gpt(), 70, bf16=False) >= FUSED
    assert step(gpt(), LONGEST + 1) >= FUSED
    assert BY_BLOCKS not in step(gpt(dropout=0.5), 70)
    model, ids = gpt(), random_ids(17, 2, 70)
    with torch.autocast("cpu", torch.bfloat16), record(model, "*.pattern") as trace:
        model(ids)
    assert trace["attention.pattern", 1].shape == (2, 2, 70, 70)


def test_compiled_blocks_keep_the_fused_kernel() -> None:
    seen = []

    def look(graph: torch.fx.GraphModule, _: list[Tensor]) -> Any:
        seen.extend(str(node.target) for node in graph.graph.nodes)
        return graph.forward

    model = gpt()
    block = torch.compile(model.blocks[0], backend=look, fullgraph=True)
    with torch.autocast("cpu", torch.bfloat16):
        block(torch.randn(2, 70, 16))
    assert any("scaled_dot_product" in name for name in seen)
