"""Replayed training steps, with the graph replaced by the work that it would replay."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor

from lightning_gpt.models import GPT, GPTConfig, graph
from lightning_gpt.training import module as module_file
from lightning_gpt.training.step_graph import StepGraph
from tests.models.helpers import captured_again
from tests.processes import run_command, tiny_config, tiny_corpus, write_config

SIZES: dict[str, Any] = {"n_layer": 2, "n_head": 2, "dim": 32, "block_size": 16, "vocab_size": 60}


@pytest.fixture
def captures() -> Iterator[mock.Mock]:
    """The captures, while the CPU counts as a device that has graphs."""
    spy = mock.Mock(side_effect=captured_again)
    devices = ("cpu",)
    with (
        mock.patch.object(graph, "GRAPH_DEVICES", devices),
        mock.patch.object(module_file, "GRAPH_DEVICES", devices),
        mock.patch.object(graph, "capture", spy),
    ):
        yield spy


def batch(step: int, rows: int = 4) -> Tensor:
    return torch.randint(60, (rows, 16), generator=torch.Generator().manual_seed(step))


def trained(model: GPT, loss: Callable[..., Tensor], rows: list[int]) -> list[Tensor]:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for step, count in enumerate(rows):
        torch.manual_seed(step)  # dropout's
        ids = batch(step, count)
        found = loss(ids, ids.roll(-1, 1), None, z_loss=1e-3)
        (0.5 * found).backward()  # as a scaler or accumulation would
        losses.append(found.detach())
        if step % 2:
            optimizer.step()
            optimizer.zero_grad()
    return [*losses, *(parameter.detach() for parameter in model.parameters())]


@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_losses_and_weights_are_those_of_the_steps(captures: mock.Mock, dropout: float) -> None:
    torch.manual_seed(0)
    one = GPT(GPTConfig(**SIZES, dropout=dropout)).double()
    other = GPT(GPTConfig(**SIZES, dropout=dropout)).double()
    other.load_state_dict(one.state_dict())
    rows = [4, 4, 4, 2, 4, 2]  # the last micro-batch of an epoch may be smaller
    found = trained(other, StepGraph(other).loss, rows)
    assert captures.call_count == 2  # one for each shape
    for a, b in zip(trained(one, one.loss, rows), found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def test_what_a_graph_cannot_do_is_done_without(captures: mock.Mock) -> None:
    model = GPT(GPTConfig(**SIZES))
    step = StepGraph(model, most_tokens=32)
    ids = batch(0)
    step.loss(ids, ids, None, z_loss=0.0)  # too many tokens
    with torch.no_grad():
        step.loss(ids[:2], ids[:2], None, z_loss=0.0)
    with model.record("blocks.0.after_ffn") as trace:
        step.loss(ids[:2], ids[:2], None, z_loss=0.0)
    assert len(trace) == 1
    model.eval()
    step.loss(ids[:2], ids[:2], None, z_loss=0.0)
    assert not captures.called


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (
            {"graph_steps": True},
            "model.graph_steps is true, but the run is on cpu, and a CUDA graph needs a CUDA device",
        ),
    ],
    ids=str,
)
def test_a_run_that_cannot_be_captured_is_refused(tmp_path: Path, model: dict[str, Any], expected: str) -> None:
    config = tiny_config(tiny_corpus(tmp_path / "corpus.txt"), max_steps=2)
    config["model"]["init_args"].update(model)
    done = run_command("fit", "--config", str(write_config(tmp_path / "run.yaml", config)), cwd=tmp_path)
    assert done.returncode == 2
    assert expected in done.stderr
