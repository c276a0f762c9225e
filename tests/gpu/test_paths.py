"""The paths that only a device takes: block masks, grouped products, graphs, and steps that never wait."""

from collections.abc import Iterator
from typing import Any
from unittest import mock

import pytest
import torch

from lightning_gpt.models import GPT, GPTConfig
from lightning_gpt.models.attention import formula, mask
from lightning_gpt.models.decoding import sampling
from lightning_gpt.models.ffn.moe.experts import Experts
from lightning_gpt.training.compiling import CompiledBlocks
from lightning_gpt.training.optim import Optimization, optimizer
from lightning_gpt.training.step_graph import StepGraph
from tests.gpu.near import BOUNDS, CUDA, errors
from tests.models.helpers import random_ids, randomise


def documents(time: int) -> torch.Tensor:
    cuts = torch.tensor([time // 3, time // 2])
    first = torch.searchsorted(cuts, torch.arange(time), right=True)
    return torch.stack([first, torch.zeros_like(first)])


@pytest.mark.parametrize(
    ("changes", "head_dim", "time", "dtype"),
    [
        # each kernel is compiled anew, which takes seconds
        ({}, 8, 100, torch.bfloat16),
        ({}, 24, 100, torch.bfloat16),
        ({}, 64, 200, torch.float16),
        ({}, 64, 256, torch.float32),
        ({"qk_norm": "layer"}, 24, 200, torch.bfloat16),
        ({"qk_norm": "layer"}, 64, 256, torch.float16),
        ({"attention": "value_embedding"}, 64, 100, torch.bfloat16),
        ({"attention": "value_embedding"}, 24, 256, torch.float32),
        ({"n_head": 1}, 64, 256, torch.bfloat16),
    ],
    ids=str,
)
def test_documents_are_kept_apart(changes: dict[str, Any], head_dim: int, time: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    n_head = changes.get("n_head", 2)
    fields = {"n_head": n_head, "dim": n_head * head_dim, "position": "rotary", **changes}
    model = randomise(GPT(GPTConfig(n_layer=2, block_size=256, vocab_size=61, **fields)), std=0.05)
    whole = formula.compiled_flex_attention
    with mock.patch.object(formula, "compiled_flex_attention", side_effect=whole) as kernel:
        found = errors(model, random_ids(61, 2, time), dtype, documents(time))
    assert kernel.called == (head_dim >= mask._NARROWEST_FLEX_HEAD)
    assert max(found) < BOUNDS[dtype]


@pytest.mark.parametrize("counts", [[7, 0, 1, 12], [0, 0, 20, 0], [5, 5, 5, 5]], ids=str)
@pytest.mark.parametrize("hidden", [16, 20])
def test_experts_are_grouped_in_bf16(hidden: int, counts: list[int]) -> None:
    from lightning_gpt.models.ffn.dense import ffns

    torch.manual_seed(0)
    experts = Experts(ffns.get("swiglu"), 24, hidden, 4, bias=True).to(CUDA)
    x = torch.randn(20, 24, device=CUDA, requires_grad=True)
    rows = torch.tensor(counts, device=CUDA)
    expected = experts(x, rows)
    slope = torch.randn_like(expected)
    exact = torch.autograd.grad(expected, [x, *experts.parameters()], slope)
    with torch.autocast("cuda", torch.bfloat16), mock.patch.object(experts, "_grouped", wraps=experts._grouped) as path:
        found = experts(x, rows)
    assert path.called
    slopes = torch.autograd.grad(found, [x, *experts.parameters()], slope.to(found.dtype))
    for one, other in zip([found, *slopes], [expected, *exact], strict=True):
        assert float((one - other).norm() / other.norm().clamp(min=1e-6)) < 3e-2


def small(**changes: Any) -> GPT:
    torch.manual_seed(0)
    return GPT(GPTConfig(**{"n_layer": 2, "n_head": 2, "dim": 64, "block_size": 64, "vocab_size": 300, **changes})).to(
        CUDA
    )


@pytest.fixture
def no_waits() -> Iterator[None]:
    """Waiting for the device is an error meanwhile."""
    yield
    torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("optimizer_name", ["adamw", "muon"])
@pytest.mark.parametrize("changes", [{}, {"qk_norm": "rms", "position": "rotary", "ffn": "swiglu"}], ids=str)
def test_a_step_never_waits_for_the_device(no_waits: None, changes: dict[str, Any], optimizer_name: str) -> None:
    model = small(**changes)
    chosen = optimizer(model, Optimization(optimizer=optimizer_name), None, torch.bfloat16)
    batches = [random_ids(300, 4, 64).to(CUDA) for _ in range(4)]
    for step, ids in enumerate(batches):
        if step == 2:
            torch.cuda.set_sync_debug_mode("error")
        with torch.autocast("cuda", torch.bfloat16):
            loss = model.loss(ids, ids.roll(-1, 1))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0, foreach=True)
        chosen.step()
        chosen.zero_grad()


def trained(model: GPT, loss: Any, steps: int = 6) -> list[torch.Tensor]:
    chosen = optimizer(model, Optimization(lr=1e-2))
    losses = []
    for step in range(steps):
        ids = torch.randint(300, (4, 64), generator=torch.Generator().manual_seed(step)).to(CUDA)
        torch.manual_seed(step)  # dropout's
        with torch.autocast("cuda", torch.bfloat16):
            found = loss(ids, ids.roll(-1, 1), None, z_loss=1e-4)
        found.backward()
        losses.append(found.detach())
        if step % 2:  # two micro-batches a step
            chosen.step()
            chosen.zero_grad()
    return [*losses, *(parameter.detach() for parameter in model.parameters())]


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_a_replayed_step_is_the_step(dropout: float, compiled: bool) -> None:
    one, other = small(dropout=dropout), small(dropout=dropout)
    graph = StepGraph(other)
    if compiled:
        with CompiledBlocks(one).training():
            expected = trained(one, one.loss)
        with CompiledBlocks(other).training():
            found = trained(other, graph.loss)
    else:
        expected, found = trained(one, one.loss), trained(other, graph.loss)
    assert len(graph._captured) == 1
    exact = not compiled or dropout == 0  # a compiled block draws its seed, once more in the passes before the capture
    for a, b in zip(expected, found, strict=True):
        assert torch.equal(a, b) if exact else torch.allclose(a, b, rtol=0.2, atol=0.2)


@pytest.mark.parametrize(
    "kind", [{}, {"position": "rotary"}, {"attention": {"kind": "window", "window": 8}}, {"position": "alibi"}], ids=str
)
@pytest.mark.parametrize("lengths", [None, [3, 7, 1]], ids=str)
def test_captured_reading_gives_the_same_text(kind: dict[str, Any], lengths: list[int] | None) -> None:
    model = randomise(small(**kind), std=0.1)
    ids = random_ids(300, 3, 7).to(CUDA)
    given = None if lengths is None else torch.tensor(lengths, device=CUDA)
    with mock.patch.object(sampling, "can_be_captured", return_value=False):
        expected = model.generate(ids, 40, lengths=given, temperature=0)
    with mock.patch.object(sampling, "CapturedReading", wraps=sampling.CapturedReading) as captured:
        found = model.generate(ids, 40, lengths=given, temperature=0)
    assert captured.called
    assert torch.equal(expected, found)
