"""Python blocks of pages run as pasted, one after another, over stand-ins for the models that the pages make."""

import re
from pathlib import Path
from typing import Any

import matplotlib
import pytest
import torch

from lightning_gpt.checkpoint_file import write_checkpoint
from lightning_gpt.data.sources.embedded import WikipediaSlice
from lightning_gpt.data.tokenizer import Tokenizer
from lightning_gpt.models import GPT, GPTConfig
from lightning_gpt.models.record import zero_heads

DOCS = Path(__file__).parents[1] / "docs"


def save(model: GPT, path: Path) -> None:
    """Write a checkpoint with a small vocabulary in which the names that a page swaps are one token each."""
    text = next(iter(WikipediaSlice().documents())).text + " Mary and John" * 2000
    content = {
        "lightning_gpt_model": model.describe(),
        "state_dict": {f"model.{name}": tensor for name, tensor in model.state_dict().items()},
        "TextData": {"tokenizer": Tokenizer.train([text], 300).state_dict()},
        "global_step": 0,
    }
    path.parent.mkdir(parents=True)
    write_checkpoint(content, path)


def quick_start() -> GPT:
    """What the quick start trains, but untrained and narrow."""
    return GPT(
        GPTConfig(
            n_layer=4, n_head=4, dim=32, block_size=128, vocab_size=4096, attention={"kind": "full", "head_dim": 64}
        )
    )


def smollm2() -> GPT:
    """As many layers, heads and dimensions as SmolLM2, with the massive activation that the page looks for."""
    narrow = {"kind": "full", "head_dim": 2}
    model = GPT(GPTConfig(n_layer=30, n_head=9, dim=576, block_size=256, vocab_size=300, attention=narrow, ffn="none"))
    with torch.no_grad():
        model.positions.weight[0, 507] = 200
    return model


def run(page: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    matplotlib.use("agg")
    blocks, names = re.findall(r"^```python\n(.*?)^```", (DOCS / page).read_text(), re.M | re.S), {}
    assert blocks
    for block in blocks:
        exec(compile(block, page, "exec"), names)
    return names


def test_the_pages_for_researchers_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    save(quick_start(), tmp_path / "runs/quickstart/version_0/checkpoints/last.ckpt")
    save(smollm2(), tmp_path / "smollm2/model.ckpt")
    names = run("researcher.md", monkeypatch)
    assert names["streams"].shape == (31, 255, 576)
    assert "position=0, dimension=507, value=200" in capsys.readouterr().out
    assert (tmp_path / "smollm2.png").is_file()
    assert names["zero_heads"] is zero_heads


def test_the_page_on_instruments_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    save(quick_start(), tmp_path / "runs/quickstart/version_0/checkpoints/last.ckpt")
    run("instruments.md", monkeypatch)
    names = run("instruments/any-model.md", monkeypatch)
    model, ids = names["model"], names["ids"]
    assert names["strengths"].shape == (model.config.n_layer + 1, 1, model.config.dim)
    assert names["logits"].shape == (*ids.shape, model.config.vocab_size)
    assert (tmp_path / "sweep.png").is_file()


def test_the_page_on_mixtures_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its training loop moves the bias of every router."""
    model = run("moe.md", monkeypatch)["model"]
    assert all(bool(block.ffn.router.bias.any()) for block in model.blocks)
