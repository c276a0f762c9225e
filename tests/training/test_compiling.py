"""Compiled blocks: the same numbers, in training steps only, one compilation for all layers.

The compiler's backend here is torch's ``aot_eager``: everything of ``torch.compile`` but the machine code, which takes
half a minute to make.
"""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import counters

from lightning_gpt.data.mark import Mark
from lightning_gpt.models import GPT, GPTConfig
from lightning_gpt.training.compiling import CompiledBlocks
from lightning_gpt.training.module import GPTModule

SIZES: dict[str, Any] = {"n_layer": 12, "n_head": 2, "dim": 32, "block_size": 16, "vocab_size": 60}


@pytest.fixture(autouse=True)
def _no_machine_code(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    whole = torch.compile

    def compile_quickly(function: Callable[..., Any]) -> Callable[..., Any]:
        return whole(function, backend="aot_eager")

    torch._dynamo.reset()
    counters.clear()
    monkeypatch.setattr(torch, "compile", compile_quickly)
    yield
    torch._dynamo.reset()


def loss_and_gradients(model: GPT, ids: Tensor) -> list[Tensor]:
    model.zero_grad()
    loss = model.loss(ids, ids)
    loss.backward()
    return [loss.detach(), *(p.grad for p in model.parameters() if p.grad is not None)]


@pytest.mark.parametrize("checkpointing", ["none", "block", "attention"])
def test_loss_and_gradients_are_those_of_the_model_as_it_is(checkpointing: str) -> None:
    model = GPT(GPTConfig(**SIZES, checkpointing=checkpointing))
    ids = torch.randint(60, (2, 16))
    expected = loss_and_gradients(model, ids)
    with CompiledBlocks(model).training():
        found = loss_and_gradients(model, ids)
    for one, other in zip(expected, found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_one_graph_serves_all_layers() -> None:
    model = GPT(GPTConfig(**SIZES))
    with CompiledBlocks(model).training():
        loss_and_gradients(model, torch.randint(60, (2, 16)))
    assert counters["stats"]["unique_graphs"] == 1
    assert not counters["graph_break"]


def test_outside_training_nothing_is_compiled() -> None:
    model = GPT(GPTConfig(**SIZES))
    compiled = CompiledBlocks(model)
    with compiled.training():
        pass
    with model.record("blocks.3.after_ffn") as trace:
        model.generate(torch.zeros(1, 1, dtype=torch.long), 3, temperature=0)
        model(torch.zeros(1, 4, dtype=torch.long))
    assert trace["blocks.3.after_ffn"].shape == (1, 4, 32)
    assert counters["stats"]["unique_graphs"] == 0


def test_a_step_that_fails_leaves_the_model_as_it_was() -> None:
    model = GPT(GPTConfig(**SIZES))
    with pytest.raises(RuntimeError, match="in the middle"), CompiledBlocks(model).training():
        raise RuntimeError("in the middle")
    assert all("forward" not in vars(module) for module in model.modules())


def test_the_module_compiles_its_training_steps_where_it_is_told_to() -> None:
    batch = {"ids": torch.randint(60, (2, 16)), "targets": torch.randint(60, (2, 16)), "mark": Mark({"rows": 0})}
    plain, compiled = GPTModule(**SIZES), GPTModule(compile_blocks=True, **SIZES)
    compiled.load_state_dict(plain.state_dict())
    expected = plain.training_step(batch, 0)  # type: ignore[arg-type]
    assert counters["stats"]["unique_graphs"] == 0
    found = compiled.training_step(batch, 0)  # type: ignore[arg-type]
    assert counters["stats"]["unique_graphs"] == 1
    torch.testing.assert_close(expected, found)
