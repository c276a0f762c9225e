"""Layers left out in real runs: those that the seed draws, in one process or two, and the same after a resume."""

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor

from lightning_gpt.data.datamodule import TextData
from lightning_gpt.data.sources.files import Files
from lightning_gpt.models import GPT, GPTConfig
from lightning_gpt.training.optim import Optimization, optimizer
from tests.processes import must_run, tiny_config, tiny_corpus, write_config
from tests.training.runs import weights

STEPS, SEED, RATES = 6, 1, (0.25, 0.5)  # of layer ℓ of 2, from 1: ℓ/2 · 0.5


@pytest.fixture(scope="module")
def content(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("layer_drop")
    content = tiny_config(tiny_corpus(folder / "corpus.jsonl"), max_steps=STEPS, val_check_interval=3)
    content["model"]["init_args"] |= {
        "dropout": 0.0,  # so that layers are all that is drawn
        "layer_drop": {"kind": "linear", "rate": 0.5},
        "optimization": {"schedule": "constant", "warmup": 0.0},
    }
    write_config(folder / "tiny.yaml", content)
    return {**content, "path": str(folder / "tiny.yaml")}


def drawn(rows: int, process: int) -> list[bool]:
    """Which layers a process leaves out in the step after which ``rows`` rows have been trained on."""
    draws = torch.rand(2, generator=torch.Generator().manual_seed(hash((SEED, rows, process))))
    return [float(draw) < rate for draw, rate in zip(draws, RATES, strict=True)]


def by_hand(content: dict[str, Any], processes: int) -> dict[str, Tensor]:
    """The weights after the run, trained in a loop, with every process's layers drawn beforehand."""
    L.seed_everything(SEED)
    init = {key: value for key, value in content["model"]["init_args"].items() if key != "optimization"}
    model = GPT(GPTConfig(**init, vocab_size=300)).train()
    made = optimizer(model, Optimization(**content["model"]["init_args"]["optimization"]))
    sources, batch_size = [Files(**content["data"]["sources"][0]["init_args"])], 4 * processes
    data = TextData(**{**content["data"], "sources": sources, "block_size": 32, "batch_size": batch_size})
    data.setup("fit")
    for step, batch in zip(range(1, STEPS + 1), data.train_dataloader(), strict=False):
        made.zero_grad()
        for process in range(processes):
            mine, rows = slice(4 * process, 4 * process + 4), batch_size * step
            before = [[none_as_zero(p.grad, p) for p in block.parameters()] for block in model.blocks]
            torch.manual_seed(hash((SEED, rows, process)))
            (model.loss(batch["ids"][mine], batch["targets"][mine]) / processes).backward()
            for block, was, left_out in zip(model.blocks, before, drawn(rows, process), strict=True):
                same = [torch.equal(none_as_zero(p.grad, p), w) for p, w in zip(block.parameters(), was, strict=True)]
                assert all(same) if left_out else not any(same)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        made.step()
    return {f"model.{name}": weight for name, weight in model.state_dict().items()}


def none_as_zero(gradient: Tensor | None, parameter: Tensor) -> Tensor:
    return torch.zeros_like(parameter) if gradient is None else gradient.clone()


def test_a_run_leaves_out_the_layers_that_its_seed_draws_also_after_a_resume(
    content: dict[str, Any], tmp_path: Path
) -> None:
    must_run("fit", "--config", content["path"], cwd=tmp_path)
    must_run("fit", "--config", content["path"], "--trainer.max_steps", "3", cwd=tmp_path)
    last = "runs/tiny/version_1/checkpoints/last.ckpt"
    must_run("fit", "--config", content["path"], "--ckpt_path", last, cwd=tmp_path)
    alone, resumed = (weights(tmp_path / f"runs/tiny/version_{version}") for version in (0, 2))
    expected = by_hand(content, processes=1)
    assert any(any(drawn(4 * step, 0)) for step in range(4, STEPS + 1)), "the resumed part must leave something out"
    assert alone.keys() == expected.keys()
    for name, weight in expected.items():
        assert torch.equal(alone[name], weight)
        assert torch.equal(resumed[name], weight)


def test_two_processes_that_draw_apart_train_together(content: dict[str, Any], tmp_path: Path) -> None:
    """A parameter without a gradient on one of them would stop the second step."""
    assert any(drawn(8 * step, 0) != drawn(8 * step, 1) for step in range(1, STEPS + 1))
    two = ("--trainer.accelerator", "cpu", "--trainer.devices", "2", "--trainer.strategy", "ddp")
    must_run("fit", "--config", content["path"], *two, cwd=tmp_path)
    found, expected = weights(tmp_path / "runs/tiny/version_0"), by_hand(content, processes=2)
    for name, weight in expected.items():
        torch.testing.assert_close(found[name], weight, rtol=0, atol=1e-6)
