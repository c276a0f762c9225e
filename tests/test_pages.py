"""Every page's Python blocks run as pasted, one after another, over stand-ins for the models that the pages make."""

import json
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

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
ELSEWHERE = {
    "README.md": "tests/test_docs.py",
    "docs/add-a-variant.md": "tests/test_add_a_variant.py",
    "docs/loggers.md": "tests/training/test_loggers.py",
    "docs/one-head.md": "tests/test_one_head_doc.py",
    "docs/serve.md": "tests/serving/test_server.py",
    "docs/student.md": "tests/test_docs.py",
}
"""Pages whose blocks other tests run."""


def save(model: GPT, path: Path, **more: Any) -> None:
    """Write a checkpoint with a small vocabulary in which the names that a page swaps are one token each."""
    text = next(iter(WikipediaSlice().documents())).text + " Mary and John" * 2000
    content = {
        "lightning_gpt_model": model.describe(),
        "state_dict": {f"model.{name}": tensor for name, tensor in model.state_dict().items()},
        "TextData": {"tokenizer": Tokenizer.train([text], 300).state_dict()},
        "global_step": 0,
        **more,
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


def run(page: str) -> dict[str, Any]:
    matplotlib.use("agg")
    blocks, names = re.findall(r"^```python\n(.*?)^```", (DOCS / page).read_text(), re.M | re.S), {}
    assert blocks
    for block in blocks:
        exec(compile(block, page, "exec"), names)
    return names


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder of a reader who has trained the quick start."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    save(quick_start(), tmp_path / "runs/quickstart/version_0/checkpoints/last.ckpt")
    return tmp_path


def test_no_page_with_python_is_left_out() -> None:
    """Each is run by a test of this file, or by the one that is named for it."""
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *DOCS.rglob("*.md")]
    with_python = {str(page.relative_to(ROOT)) for page in pages if re.search(r"^```python", page.read_text(), re.M)}
    here = Path(__file__).read_text()
    run_here = {f"docs/{page}" for page in re.findall(r'run\("([\w/-]+\.md)"\)', here)}
    assert run_here | set(ELSEWHERE) == with_python
    for page, test in ELSEWHERE.items():
        assert Path(page).name in (ROOT / test).read_text(), f"{test} does not read {page}"


def test_the_pages_for_researchers_run(here: Path, capsys: Any) -> None:
    save(smollm2(), here / "smollm2/model.ckpt")
    names = run("researcher.md")
    assert names["streams"].shape == (31, 255, 576)
    assert "position=0, dimension=507, value=200" in capsys.readouterr().out
    assert (here / "smollm2.png").is_file()
    assert names["zero_heads"] is zero_heads
    assert run("interop/tokenizers.md")["tokenizer"].vocab_size == 300


def test_the_pages_on_instruments_and_generation_run(here: Path) -> None:
    run("instruments.md")
    names = run("instruments/any-model.md")
    model, ids = names["model"], names["ids"]
    assert names["strengths"].shape == (model.config.n_layer + 1, 1, model.config.dim)
    assert names["logits"].shape == (*ids.shape, model.config.vocab_size)
    assert (here / "sweep.png").is_file()
    changed = run("explore.md")["logits"]
    assert changed.shape[-1] == 4096
    assert run("generate.md")["model"].tokenizer.vocab_size == 300


def test_the_page_on_mixtures_runs() -> None:
    """Its training loop moves the bias of every router."""
    model = run("moe.md")["model"]
    assert all(bool(block.ffn.router.bias.any()) for block in model.blocks)


def test_the_pages_that_need_no_model_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.chdir(tmp_path)
    run("variants/after-training.md")
    assert len(run("variants/depth.md")["deeper"].block_views()) == 14
    assert run("data.md")["is_short"]("a short text")
    trainer = run("engineer.md")["module"].trainer
    assert trainer.global_step == 8
    capsys.readouterr()
    run("recipes/mup.md")
    printed = [line.split() for line in capsys.readouterr().out.splitlines()]
    (standard, mup) = (float(line[-1]) for line in printed if line[0] == "logits")
    assert mup < standard / 2  # at the largest width
    # what the page's table says
    table = re.findall(r"^\| logits, (?:standard|μP) \|.* ([\d.]+) \|$", (DOCS / "recipes/mup.md").read_text(), re.M)
    assert [standard, mup] == pytest.approx([float(value) for value in table[-2:]], rel=0.2)


def test_the_pages_on_what_a_run_leaves_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """The metrics, and a step that was not finite."""
    monkeypatch.chdir(tmp_path)
    run_folder = tmp_path / "runs/gpt/version_0"
    model = quick_start()
    with torch.no_grad():
        model.blocks[1].ffn.up.weight[0, 0] = torch.nan
    ids = torch.arange(8)[None]
    save(model, run_folder / "non_finite/step_120.ckpt", micro_batches=[{"ids": ids, "targets": ids}])
    run("engineer/interrupted.md")
    told = dict(line.split() for line in capsys.readouterr().out.splitlines())
    assert told["blocks.0.after_ffn"] == told["blocks.1.after_attention"] == "True"
    assert told["blocks.1.ffn.hidden"] == told["final_norm"] == "False"
    lines = [{"step": 1, "tokens": 8, "train/loss": 5.0}, {"step": 2, "tokens": 16, "val/loss": 4.0}]
    (run_folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert len(run("engineer/files.md")["metrics"]) == 2
